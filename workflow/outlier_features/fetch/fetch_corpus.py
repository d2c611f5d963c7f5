"""Fetch a corpus: documents from the standard library, from files, or from a data set on the hub."""

import hashlib
import json
import platform
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from outlier_features.errors import InputError
from outlier_features.fetch.documents import read_files, read_stdlib
from outlier_features.files.artifacts import PROVENANCE, write_json
from outlier_features.files.model_source import SOURCE_FILE
from outlier_features.files.sealed_parquet import SEAL, sealing
from outlier_features.progress import byte_bar

DOCUMENTS_FILE = "documents.parquet"
MAX_ROWS = 10_000
MAX_BYTES = 20_000_000
_SCHEMA = pa.schema([pa.field("document", pa.uint32(), False), pa.field("text", pa.string(), False)])
_BATCH_BYTES = 1 << 24


@dataclass(frozen=True)
class _Corpus:
    kind: str
    origin: str
    revision: str | None
    licence: str | None
    texts: Generator[str]
    details: dict[str, Any] = field(default_factory=dict)


def fetch_corpus(source: dict[str, Any], directory: Path) -> None:
    """Write the documents of the catalog entry `source` to `directory/documents.parquet`, then `directory/source.json`.

    The table has the columns document (from 0) and text. Reading stops before the document that would be one more than
    `max_rows`, or take the UTF-8 text over `max_bytes`; no document is cut. The record's `sha256` is over the texts in
    UTF-8, each after its length in bytes (8 bytes, little-endian); `limit` is the bound that ended the reading, if one
    did. Raises `InputError`.
    """
    corpus = _open(source)
    max_rows, max_bytes = source.get("max_rows", MAX_ROWS), source.get("max_bytes", MAX_BYTES)
    with closing(corpus.texts):
        written = _write(directory / DOCUMENTS_FILE, corpus, max_rows, max_bytes)
    record = {
        "kind": corpus.kind,
        "origin": corpus.origin,
        "revision": corpus.revision,
        "licence": corpus.licence,
        **written,
        **corpus.details,
    }
    write_json(directory / SOURCE_FILE, record)


def _open(source: dict[str, Any]) -> _Corpus:
    column = source.get("column", "text")
    if "stdlib" in source:
        module, python = source["stdlib"], platform.python_version()
        return _Corpus("stdlib", module, f"python {python}", "PSF-2.0", read_stdlib(module), {"python": python})
    if "files" in source:
        return _Corpus("files", ", ".join(source["files"]), None, None, read_files(source["files"], column))
    if "hub" in source:
        return _open_hub(source, column)
    raise InputError(f"catalog.corpora: expected one of the keys stdlib, files and hub, found {sorted(source)}")


def _open_hub(source: dict[str, Any], column: str) -> _Corpus:
    from outlier_features.fetch.hub import Repo  # the hub library takes a second to import, and most corpora need none
    from outlier_features.fetch.hub_documents import find_documents, read_documents

    repo = Repo("data set", source["hub"], source.get("revision", "main"))
    found = find_documents(repo, source.get("config", "default"), source.get("split", "train"))
    details = {"config": found.config, "split": found.split, "column": column, "files": found.files}
    return _Corpus("hub", repo.name, found.repo.revision, found.licence, read_documents(found, column), details)


def _write(path: Path, corpus: _Corpus, max_rows: int, max_bytes: int) -> dict[str, Any]:
    digest, documents, size = hashlib.sha256(), 0, 0
    limits: list[str] = []
    # The hash is known only at the end; readers take what is added then for the schema's metadata if none is stored.
    with (
        sealing(path) as temporary,
        pq.ParquetWriter(
            temporary, _SCHEMA, compression="zstd", write_page_checksum=True, store_schema=False
        ) as writer,
    ):
        for texts in _batches(_bounded(corpus, max_rows, max_bytes, limits)):
            numbers = pa.array(range(documents, documents + len(texts)), pa.uint32())
            writer.write_table(pa.Table.from_arrays([numbers, pa.array(texts, pa.string())], schema=_SCHEMA))
            for text in texts:
                encoded = text.encode()
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
                size += len(encoded)
            documents += len(texts)
        if not size:
            raise InputError(f"{corpus.kind}: {corpus.origin} has {documents} documents and no text, expected some")
        provenance = {"origin": corpus.origin, "revision": corpus.revision, "sha256": digest.hexdigest()}
        writer.add_key_value_metadata({"table": "documents", PROVENANCE: json.dumps(provenance), **SEAL})
    reached = {"limit": limits[0]} if limits else {}
    return {"sha256": digest.hexdigest(), "documents": documents, "bytes": size, **reached}


def _bounded(corpus: _Corpus, max_rows: int, max_bytes: int, limits: list[str]) -> Generator[str]:
    """The texts up to the bounds; nothing is read beyond them. The one that ends the reading goes to `limits`."""
    size = 0
    with byte_bar(corpus.origin) as bar:
        for number, text in enumerate(corpus.texts, start=1):
            length = len(text.encode())
            if size + length > max_bytes:
                if not size:
                    raise InputError(
                        f"max_bytes: is {max_bytes}, but document {number} of {corpus.origin} has {length}"
                    )
                limits.append("max_bytes")
                return
            size += length
            bar.update(length)
            yield text
            if number == max_rows:
                limits.append("max_rows")
                return


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_BYTES or len(batch) >= 4096:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
