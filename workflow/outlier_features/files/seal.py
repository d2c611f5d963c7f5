"""One seal for files of every kind: the CRC-32 of what describes a file, kept in it as eight digits.

It stands after `content_crc32`, where a format has room for a text: a key of JSON, a comment of HTML, the metadata of a
safetensors header or of a Parquet footer. It is taken over JSON and HTML as a whole; of the others over the header or
the footer, which even damaged may be one, with other shapes, columns or provenance. The data has checksums of its own:
of each tensor in the header, of each page in Parquet's pages.
"""

import re
import zlib

MARK = "content_crc32"
BLANK = "0" * 8  # what a file is written with, until it is sealed
_SEAL = re.compile(MARK.encode() + b"[^0-9a-f]{1,4}([0-9a-f]{8})")  # between the two stands what the format asks for


def sealed(content: bytes, name: str = "") -> bytes:
    """`content` with the seal in its place; it is taken over `name` too, which may say where the file belongs."""
    start, stop = _place(content)
    return content[:start] + _checksum(content, start, stop, name) + content[stop:]


def require_seal(content: bytes, name: str = "") -> None:
    """Raise `ValueError` where `content` is not as it was sealed."""
    start, stop = _place(content)
    if content[start:stop] != _checksum(content, start, stop, name):
        raise ValueError(f"content that does not have the checksum {content[start:stop].decode()} that it names")


def _place(content: bytes) -> tuple[int, int]:
    """Where the digits stand: after the last mark, as texts before it may speak of another."""
    found = list(_SEAL.finditer(content))
    if not found:
        raise ValueError("content without a checksum, not one that this workflow wrote")
    return found[-1].span(1)


def _checksum(content: bytes, start: int, stop: int, name: str) -> bytes:
    crc = zlib.crc32(content[:start], zlib.crc32(name.encode()))
    return f"{zlib.crc32(content[stop:], zlib.crc32(BLANK.encode(), crc)):08x}".encode()
