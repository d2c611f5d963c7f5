"""Progress of long work, on stderr."""

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
_DRAWN: dict[str, Any] = {"mininterval": 1.0, "delay": 3.0, "leave": False}


def byte_bar(description: str, total: int | None = None, disable: bool = False) -> "tqdm[Any]":
    """A bar that appears after three seconds and is drawn at most once a second."""
    return tqdm(
        desc=description,
        total=total,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        disable=disable,
        **_DRAWN,
    )


def item_bar(items: Iterable[T], description: str, unit: str, total: int | None = None) -> "tqdm[T]":
    """`items`, with such a bar over them."""
    return tqdm(items, desc=description, total=total, unit=unit, file=sys.stderr, **_DRAWN)
