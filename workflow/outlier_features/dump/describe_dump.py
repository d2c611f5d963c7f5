"""Rule describe_dump: what stands for the tokens and texts of a run whose activations come from a dump."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlier_features import __version__
from outlier_features.dump.dumps import CORPUS, Dump
from outlier_features.errors import InputError
from outlier_features.files.artifacts import PROVENANCE, read_json
from outlier_features.files.model_source import source_of
from outlier_features.files.sealed_parquet import write_parquet
from outlier_features.files.tensorfile import TensorFile, write_tensors
from outlier_features.rules import RESIDUAL_BASIS
from outlier_features.tokens.tokens import UNKNOWN, tokens_digest

Array = np.ndarray[Any, Any]
Labels = list[list[str]]
_INTEGERS = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")


def describe_dump(
    model: str,
    model_source: Path,
    tokens: Path,
    texts: Path,
    *,
    files: list[Path],
    keys: Mapping[str, str],
    first_token: str,
    labels: str | None,
) -> None:
    """Write `tokens` and `texts` as `tokenize_corpus` does, with the facts of the dump as provenance.

    keys          per site, the key of its tensor
    first_token   special: position 0 is left out of population `without_first`; ordinary: there is only `all`
    labels        a key of integers with N x T values in every file, or a JSON file: a list of T texts, or N such lists

    Tokens are -1 (unknown), or the labels where these are integers. Raises `InputError`.
    """
    source = source_of(model_source)
    dump = Dump.open(files, keys)
    shape = (sum(dump.rows), dump.tokens)
    ids, names = _labels(dump, labels, shape)
    pieces = [[f"{name} " for name in row] for row in names] if names else [[""] * shape[1]] * shape[0]
    arrays = {
        "tokens": ids,
        "special": np.zeros(shape, bool),
        "mask": np.ones(shape, bool),
        "offsets": np.stack([_offsets(row) for row in pieces]),
    }
    arrays["special"][:, 0] = first_token == "special"
    provenance = {
        "model": model,
        "model_origin": source["origin"],
        "model_revision": source["revision"],
        "corpus": CORPUS,
        "corpus_sha256": source["revision"],
        "sample": {"sequences": shape[0], "tokens": shape[1]},
        "first_token": first_token,
        "special_tokens": {},
        "tokens_sha256": tokens_digest(arrays["tokens"], arrays["special"], arrays["mask"]),
        "architecture": "activation dump",
        **dict.fromkeys(("parameters", "vocab_size", "device", "attention", "torch", "transformers")),
        "blocks": dump.blocks,
        "d_model": _width(dump, keys),
        "causal_head": False,
        "dtype": dump.dtype,
        "sequences": shape[0],
        "sites": list(keys),
        "keys": dict(keys),
        "absent": {},
        "package_version": __version__,
    }
    write_tensors(tokens, arrays, provenance)
    frame = pl.DataFrame({"sequence": range(shape[0]), "text": ["".join(row) for row in pieces]})
    table = frame.cast({"sequence": pl.UInt32}).to_arrow()
    write_parquet(texts, table.replace_schema_metadata({"table": "texts", PROVENANCE: json.dumps(provenance)}))


def _width(dump: Dump, keys: Mapping[str, str]) -> int | None:
    """d_model, which all sites on the basis of the residual stream must share."""
    widths = {site: dump.dims(site) for site in keys if site in RESIDUAL_BASIS}
    for site, width in widths.items():
        first = next(iter(widths))
        if width != widths[first]:
            raise InputError(
                f"{dump.files[0]}: {keys[site]} ({site}) has {width} dims, expected {widths[first]} as "
                f"{keys[first]} ({first}) has, since both are on the basis of the residual stream"
            )
    return next(iter(widths.values()), None)


def _offsets(pieces: list[str]) -> Array:
    """UTF-8 bytes (T, 2) of each label; the space after it belongs to none."""
    ends = np.cumsum([0, *(len(piece.encode()) for piece in pieces)])
    spans = np.stack([ends[:-1], np.maximum(ends[1:] - 1, ends[:-1])], axis=1)
    return spans.astype(np.int32)


def _labels(dump: Dump, labels: str | None, shape: tuple[int, int]) -> tuple[Array, Labels]:
    """Token ids int32 (N, T), unknown ones -1, and what is shown for each."""
    if labels is None:
        return np.full(shape, UNKNOWN, np.int32), []
    if labels.endswith(".json"):
        return np.full(shape, UNKNOWN, np.int32), _from_json(Path(labels), shape)
    files = zip(dump.files, dump.rows, strict=True)
    ids = np.concatenate([_from_key(TensorFile(path), labels, (rows, shape[1])) for path, rows in files])
    return ids, [[str(i) for i in row] for row in ids.tolist()]


def _from_key(file: TensorFile, key: str, shape: tuple[int, int]) -> Array:
    entry = file.entry(key)
    found = int(np.prod(entry.shape, dtype=object))
    if entry.dtype not in _INTEGERS or found != shape[0] * shape[1] or entry.shape[:1] != shape[:1]:
        raise InputError(
            f"{file.path}: labels {key} is {entry.dtype} {list(entry.shape)}, expected integers with "
            f"{shape[1]} for each of {shape[0]} sequences"
        )
    ids = file.array(key).reshape(shape)
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) > np.iinfo(np.int32).max):
        raise InputError(f"{file.path}: labels {key} has values outside 0..2147483647")
    return ids.astype(np.int32)


def _from_json(path: Path, shape: tuple[int, int]) -> Labels:
    found = read_json(path)
    rows = [found] * shape[0] if isinstance(found, list) and all(isinstance(name, str) for name in found) else found
    fits = isinstance(rows, list) and len(rows) == shape[0] and all(
        isinstance(row, list) and len(row) == shape[1] and all(isinstance(name, str) for name in row) for row in rows
    )  # fmt: skip
    if not fits:
        raise InputError(f"{path}: expected a list of {shape[1]} texts as labels, or {shape[0]} such lists")
    return [list(row) for row in rows]
