"""The text of sequences of which the tokens are known, each by its bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def spans(pieces: Sequence[Sequence[bytes]], shape: tuple[int, int]) -> Array:
    """The bytes, int32 (N, T, 2), of `text` that each token covers: whole characters, as `tokenize_corpus` has them.

    pieces   of each sequence the bytes of its tokens, which may be part of a character; what follows is padding
    """
    offsets = np.zeros((*shape, 2), np.int32)
    for place, row in zip(offsets, pieces, strict=True):
        ends = np.cumsum([0, *map(len, row)])
        encoded = text(row).encode()
        characters = np.append(np.flatnonzero((np.frombuffer(encoded, np.uint8) & 0xC0) != 0x80), len(encoded))
        first = characters[np.searchsorted(characters, ends[:-1], side="right") - 1]
        last = characters[np.searchsorted(characters, ends[1:])]
        empty = ends[:-1] == ends[1:]
        place[: len(row)] = np.stack([np.where(empty, ends[:-1], first), np.where(empty, ends[1:], last)], axis=1)
        place[len(row) :] = ends[-1]
    return offsets


def text(pieces: Sequence[bytes]) -> str:
    """As many bytes of text: what is no character is a question mark each."""
    characters = b"".join(pieces).decode(errors="surrogateescape")
    return "".join("?" if "\udc80" <= one <= "\udcff" else one for one in characters)
