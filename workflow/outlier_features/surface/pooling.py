"""Neighbours put together, so that a long axis has few enough marks; what matters keeps a place of its own."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def pooled_ranges(own: Array, most: int) -> Array:
    """At most `most` consecutive ranges that cover the indices of `own`, bool (n,): first and last of each, (R, 2).

    An index in `own` is a range of its own. The others, between two such, are split evenly into ranges that are as
    short as `most` allows; all of length 1 where n <= most. Raises `ValueError` where 2 x own indices + 1 > most.
    """
    n = len(own)
    if n <= most:
        return np.stack([np.arange(n)] * 2, axis=1)
    alone = np.flatnonzero(own)
    if 2 * len(alone) + 1 > most:
        raise ValueError(f"{len(alone)} indices of their own do not fit into {most} ranges")
    starts, stops = np.append(0, alone + 1), np.append(alone, n)
    lengths = stops - starts
    longest = next(size for size in range(1, n + 1) if (-(-lengths // size)).sum() + len(alone) <= most)
    edges = np.concatenate(
        [np.linspace(a, b, -(-(b - a) // longest) + 1).astype(int)[:-1] for a, b in zip(starts, stops, strict=True)]
    )
    firsts = np.sort(np.concatenate([edges, alone]))
    return np.stack([firsts, np.append(firsts[1:], n) - 1], axis=1)


def largest_indices(sizes: Array, most: int) -> Array:
    """The indices of the `most` largest values, the first of equals; those of -inf are never among them."""
    order = np.argsort(-sizes, kind="stable")[:most]
    return order[np.isfinite(sizes[order])]
