"""Bootstrap intervals over a run's sequences: what a number would be had other sequences been drawn."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

DRAWS, SEED, LEVEL = 1000, 0, 0.95
_AT_ONCE = 100  # draws

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
Interval = tuple[float | None, float | None]


class Resampling:
    """`DRAWS` samples of as many sequences as a run has, with replacement, by numpy's `default_rng(SEED)`.

    Runs of as many sequences have the same draws. Every sum has its order in the source, so that no number depends on
    the number of cores.

    times   how often each draw has each sequence, int64 (DRAWS, sequences)
    """

    def __init__(self, sequences: int):
        drawn = np.random.default_rng(SEED).integers(0, max(sequences, 1), (DRAWS, sequences))
        self.times: Counts = np.stack([np.bincount(draw, minlength=sequences) for draw in drawn])

    def interval(self, values: Array) -> Interval:
        """The percentiles that enclose `LEVEL` of a statistic's values (DRAWS,).

        Draws in which there is no such number (nan) are left out. None where all are, and where the run has one
        sequence, which says nothing about others.
        """
        known = values[~np.isnan(values)]
        if self.times.shape[1] < 2 or not len(known):
            return None, None
        low, high = np.percentile(known, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        return float(low), float(high)

    def sums(self, values: NDArray[np.generic]) -> Array:
        """Of a number for each sequence (sequences,) the sum in each draw (DRAWS,)."""
        return weighted_sums(self.times, np.asarray(values, np.float64)[:, None])[:, 0]

    def ratios(self, numerators: NDArray[np.generic], denominators: NDArray[np.generic]) -> Array:
        """The quotient of two sums in each draw; nan where the denominator is 0."""
        return quotient(self.sums(numerators), self.sums(denominators))

    def medians(self, values: Array, sequence: NDArray[np.integer]) -> Array:
        """The median of `values` (n,) in each draw, each counted as often as its sequence (n,) is drawn."""
        order = np.argsort(values, kind="stable")
        ordered, owner = values[order], sequence[order]
        return np.array([_median(ordered, times[owner]) for times in self.times])

    def portions(self) -> Iterator[Counts]:
        """`times` some draws at a time."""
        for start in range(0, DRAWS, _AT_ONCE):
            yield self.times[start : start + _AT_ONCE]


def weighted_sums(times: Counts, values: Array) -> Array:
    """`times` (draws, sequences) by `values` (sequences, n), added up in the order of the sequences."""
    total = np.zeros((len(times), values.shape[1]))
    for often, row in zip(times.T, values, strict=True):
        total += often[:, None] * row
    return total


def quotient(numerators: Array, denominators: Array) -> Array:
    return np.divide(numerators, denominators, out=np.full_like(numerators, np.nan), where=denominators != 0)


def _median(ordered: Array, times: Counts) -> float:
    """Of values in ascending order, each there so many times; nan of none."""
    ends = np.cumsum(times)
    if not len(ends) or not ends[-1]:
        return float("nan")
    low, high = np.searchsorted(ends, [(ends[-1] - 1) // 2, ends[-1] // 2], side="right")
    return float((ordered[low] + ordered[high]) / 2)
