"""The shape of a dim over the blocks: where it steps up and where it falls."""

from typing import Any

import numpy as np


def steps(profile: np.ndarray[Any, Any]) -> tuple[int, int | None]:
    """Indices where a dim's max abs(x) per layer (L,) steps up to half of its maximum, and later falls below it."""
    reached = profile >= profile.max() / 2
    up = int(reached.argmax())
    below = np.flatnonzero(~reached[up:])
    return up, (up + int(below[0]) if len(below) else None)
