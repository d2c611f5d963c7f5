"""Parquet files whose pages and footer carry checksums.

The format has checksums for pages only, yet a damaged footer may still be a footer, with another schema or provenance.
Here the footer's metadata has a field `footer_crc32`: the CRC-32 of the footer with this field at zero.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from outlier_features.files.artifacts import replacing

SEAL = {"footer_crc32": "0" * 8}  # must be among the metadata of a file that `sealing` writes
_MAGIC = b"PAR1"
_FIELD = b"footer_crc32\x18\x08"  # in Thrift's compact protocol: the key, "the next field is text", "of 8 bytes"


@contextmanager
def sealing(path: str | Path) -> Iterator[Path]:
    """`artifacts.replacing` for a Parquet file with `SEAL` in its metadata."""
    with replacing(path) as temporary:
        yield temporary
        with temporary.open("r+b") as file:
            footer, start = _footer(file)
            file.seek(start + _place(footer))
            file.write(_checksum(footer))


def write_parquet(path: str | Path, table: pa.Table) -> None:
    """Write `table`, with checksums, under a temporary name first."""
    metadata = {key.decode(): value for key, value in (table.schema.metadata or {}).items()}
    table = table.replace_schema_metadata({**metadata, **SEAL})
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
    place = _place(footer)
    if footer[place : place + 8] != _checksum(footer):
        raise ValueError("a footer that does not have the checksum that it names")
    return pq.ParquetFile(path, page_checksum_verification=True)


def metadata_of(file: pq.ParquetFile) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}


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


def _place(footer: bytes) -> int:
    """Where the checksum stands in the footer."""
    if footer.count(_FIELD) != 1:
        raise ValueError("a footer without a checksum, not one that this workflow wrote")
    return footer.index(_FIELD) + len(_FIELD)


def _checksum(footer: bytes) -> bytes:
    place = _place(footer)
    return f"{zlib.crc32(footer[:place] + b'0' * 8 + footer[place + 8 :]):08x}".encode()
