"""Deciles, as far as a histogram knows them."""

from collections.abc import Sequence

import numpy as np


def deciles(low: float, width: float, counts: Sequence[int], least: float, largest: float) -> list[float]:
    """The nine deciles of values of which only bins are known: within a bin they are taken to lie evenly.

    low, width      of the bins; `counts` are the values in each
    least, largest  of the values: beyond these no decile lies

    Each is off by less than a bin's width. Without values there are none.
    """
    before = np.concatenate([[0], np.cumsum(counts)])
    if not before[-1]:
        return []
    found = []
    for tenth in range(1, 10):
        wanted = before[-1] * tenth / 10
        place = int(np.searchsorted(before, wanted, side="left")) - 1
        inside = (wanted - before[place]) / counts[place]
        found.append(min(max(low + width * (place + inside), least), largest))
    return found
