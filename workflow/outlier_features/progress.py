"""Progress of long work with bytes, on stderr."""

import sys
from typing import Any

from tqdm import tqdm


def byte_bar(description: str, total: int | None = None, disable: bool = False) -> "tqdm[Any]":
    """A bar that appears after three seconds and is drawn at most once a second."""
    return tqdm(
        desc=description,
        total=total,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        mininterval=1.0,
        delay=3.0,
        leave=False,
        disable=disable,
    )
