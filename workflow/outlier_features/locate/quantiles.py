"""Quartiles of any number of values, exactly, in memory that does not grow with them; or of a sample, with its error.

A histogram by the top 16 bits says in which bins the order statistics lie. It is exact for 16-bit formats; for float32
the values of those bins, at most six, are counted again by their low 16 bits. Quartiles interpolate linearly between
order statistics, in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from math import sqrt
from typing import Any

import numpy as np

from outlier_features.scan.site_tensors import SiteTensors, itemsize, widened

Array = np.ndarray[Any, Any]
Progress = Callable[[int], object]

SEED = 0
SLOTS = 6  # three quartiles, each between two order statistics
_BINS = 1 << 16
_STEP = 1 << 24  # values that are drawn from at a time
# Bins of signed values from the smallest value to the largest: negative floats are ordered against their bits.
_ASCENDING = np.concatenate([np.arange(_BINS - 1, _BINS // 2 - 1, -1), np.arange(_BINS // 2)])


@dataclass(frozen=True)
class Quartiles:
    """`samples` and the standard errors are None where the quartiles are exact."""

    q1: float
    median: float
    q3: float
    samples: int | None = None
    errors: tuple[float, float, float] | None = None

    @property
    def iqr(self) -> float:
        return self.q3 - self.q1

    @property
    def iqr_error(self) -> float | None:
        """From the errors of q1 and q3, whose correlation is 1/3 whatever the distribution."""
        if self.errors is None:
            return None
        first, _, third = self.errors
        return sqrt(first**2 + third**2 - 2 / 3 * first * third)


def quartile_bins(counts: Array) -> Array:
    """The bins in which the order statistics around the quartiles lie, uint32 (6,); unused ones are 65536 and last."""
    places, _ = _at_ranks(counts[_ASCENDING], np.array(_ranks(int(counts.sum()))))
    wanted = np.full(SLOTS, _BINS, np.uint32)
    bins = np.unique(_ASCENDING[places])
    wanted[: len(bins)] = bins
    return wanted


def quartiles_of_bins(counts: Array, dtype: str, low: Array | None = None) -> Quartiles:
    """Exact quartiles from a histogram by the top 16 bits, int64 (65536,).

    low   for float32: how many values of each of the `quartile_bins` have which low 16 bits, int64 (6, 65536)
    """
    total = int(counts.sum())
    ranks = _ranks(total)
    places, within = _at_ranks(counts[_ASCENDING], np.array(ranks))
    bins = _ASCENDING[places]
    if low is None:
        values = widened(bins.astype(np.uint16), dtype)
    else:
        slots = np.searchsorted(quartile_bins(counts), bins)
        bits = [_refined(low[slot], bin, rank) for slot, bin, rank in zip(slots, bins, within, strict=True)]
        values = widened(np.array(bits, np.uint32), dtype)
    at = dict(zip(ranks, values.astype(np.float64).tolist(), strict=True))
    q1, median, q3 = (_between(at[below], at[min(below + 1, total - 1)], part) for below, part in _places(total))
    return Quartiles(q1, median, q3)


def quartiles_of_values(values: Array, sampled: bool = False) -> Quartiles:
    """Quartiles of float32 values, which are put in another order; with `sampled`, their standard errors too.

    A standard error is half the distance of the order statistics one binomial standard deviation, sqrt(n p (1 - p)),
    below and above the quartile's rank: no density needs to be known.
    """
    total = len(values)
    places = _places(total)
    spreads = [
        (below + part, sqrt(total * p * (1 - p))) for (below, part), p in zip(places, (0.25, 0.5, 0.75), strict=True)
    ]
    bounds = [(max(0, round(at - by)), min(total - 1, round(at + by))) for at, by in spreads]
    ranks = set(_ranks(total))
    if sampled:
        ranks |= {rank for bound in bounds for rank in bound}
    values.partition(sorted(ranks))
    at = {rank: float(values[rank]) for rank in ranks}
    q1, median, q3 = (_between(at[below], at[min(below + 1, total - 1)], part) for below, part in places)
    if not sampled:
        return Quartiles(q1, median, q3)
    first, second, third = ((at[high] - at[low]) / 2 for low, high in bounds)
    return Quartiles(q1, median, q3, samples=total, errors=(first, second, third))


def sample_site(site: SiteTensors, samples: int, progress: Progress = lambda done: None) -> Quartiles:
    """Quartiles of values drawn at random, with replacement, from a site, the same in any layout."""
    sizes = site.lengths * (len(site.layers) * site.dims)  # of each sequence
    ends = np.cumsum(sizes)
    chosen = np.sort(np.random.default_rng(SEED).integers(0, int(ends[-1]), samples))
    values = np.empty(samples, np.float32)
    blocks = list(site.blocks(_STEP))
    site.will_need(*blocks[0])
    for (first, last), following in zip_longest(blocks, blocks[1:]):
        if following:
            site.will_need(*following)
        low, high = np.searchsorted(chosen, (ends[first] - sizes[first], ends[last - 1]))
        sequences = np.searchsorted(ends, chosen[low:high], "right")
        places = chosen[low:high] - (ends - sizes)[sequences]
        layers, cells = np.divmod(places, site.lengths[sequences] * site.dims)
        values[low:high] = site.values_at(layers, sequences, cells)
        site.drop(first, last)
        progress(int(sizes[first:last].sum()) * itemsize(site.stored))
    return quartiles_of_values(values, sampled=True)


def _places(total: int) -> list[tuple[int, float]]:
    """For each quartile the rank below it, from 0, and how far it lies towards the next; in integers, so exact."""
    return [(below, rest / 4) for below, rest in (divmod((total - 1) * k, 4) for k in (1, 2, 3))]


def _ranks(total: int) -> list[int]:
    """The ranks of the order statistics between which the quartiles lie."""
    return sorted({rank for below, _ in _places(total) for rank in (below, min(below + 1, total - 1))})


def _between(low: float, high: float, part: float) -> float:
    value = low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)
    return value + 0.0  # -0.0 becomes 0.0


def _at_ranks(counts: Array, ranks: Array) -> tuple[Array, Array]:
    """Which of some ordered bins hold the given ranks, and the ranks within them."""
    ends = np.cumsum(counts)
    places = np.searchsorted(ends, ranks, side="right")
    return places, ranks - (ends[places] - counts[places])


def _refined(low: Array, top: int, rank: int) -> int:
    """The bits of the value of a rank within the bin `top`, given the counts of its low 16 bits."""
    negative = int(top) >= _BINS // 2
    place = int(_at_ranks(low[::-1] if negative else low, np.array([rank]))[0][0])
    return int(top) << 16 | (_BINS - 1 - place if negative else place)
