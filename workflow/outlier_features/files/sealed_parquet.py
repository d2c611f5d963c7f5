"""Parquet files whose pages carry checksums, as the format has them, and whose footer has the seal in its metadata."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from outlier_features.files.artifacts import replacing
from outlier_features.files.seal import BLANK, MARK, require_seal, sealed

SEAL = {MARK: BLANK}  # must be among the metadata of a file that `sealing` writes
_MAGIC = b"PAR1"


@contextmanager
def sealing(path: str | Path) -> Iterator[Path]:
    """`artifacts.replacing` for a Parquet file with `SEAL` in its metadata."""
    with replacing(path) as temporary:
        yield temporary
        with temporary.open("r+b") as file:
            footer, start = _footer(file)
            file.seek(start)
            file.write(sealed(footer))


def write_parquet(path: str | Path, table: pa.Table, metadata: Mapping[str, str]) -> None:
    """Write `table`, with checksums and more metadata, under a temporary name first."""
    own = {key.decode(): value for key, value in (table.schema.metadata or {}).items()}
    table = table.replace_schema_metadata({**own, **metadata, **SEAL})
    with sealing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def open_parquet(path: str | Path) -> pq.ParquetFile:
    """A file that was written here, to be read with its checksums verified.

    Raises `ValueError` where the footer is damaged, and what pyarrow raises (`OSError`, `pa.ArrowException`).
    """
    with Path(path).open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("a file that does not begin as Parquet files do")
        footer, _ = _footer(file)
    require_seal(footer)
    return pq.ParquetFile(path, page_checksum_verification=True)


def metadata_of(file: pq.ParquetFile) -> dict[str, str]:
    """All but the schema that Arrow keeps there."""
    found = file.metadata.metadata or {}
    return {key.decode(): value.decode() for key, value in found.items() if key != b"ARROW:schema"}


def _footer(file: BinaryIO) -> tuple[bytes, int]:
    """The footer's bytes and where they start."""
    end = file.seek(0, 2)
    file.seek(max(end - 8, 0))
    length, magic = int.from_bytes(file.read(4), "little"), file.read(4)
    start = end - 8 - length
    if magic != _MAGIC or start < len(_MAGIC):
        raise ValueError(f"{end} bytes that do not end as Parquet files do")
    file.seek(start)
    return file.read(length), start
