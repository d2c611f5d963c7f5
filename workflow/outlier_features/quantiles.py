"""Quartiles of any number of values, exactly, in memory that does not grow with them; or of a sample, with its error.

A histogram by the top 16 bits says in which bins the order statistics lie. It is exact for 16-bit formats; for float32
the values of those bins, at most six, are counted again by their low 16 bits. Quartiles interpolate linearly between
order statistics, in float64.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from outlier_features import count_kernel as kernel
from outlier_features.scan import SiteTensors, itemsize, widened

Array = np.ndarray[Any, Any]
Progress = Callable[[int], object]

SEED = 0
_BINS = 1 << 16
_STEP = 1 << 22  # values of a slice of the file
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


def quartiles_of_bins(counts: Array, dtype: str, refine: Callable[[Array], Array]) -> Quartiles:
    """Exact quartiles from a histogram by the top 16 bits, int64 (65536,).

    `refine` is given bins, uint32 (6,), and counts their values by the low 16 bits, int64 (6, 65536). It is called for
    float32 only.
    """
    total = int(counts.sum())
    ranks = sorted({rank for below, _ in _places(total) for rank in (below, min(below + 1, total - 1))})
    places, within = _at_ranks(counts[_ASCENDING], np.array(ranks))
    bins = _ASCENDING[places].astype(np.uint32)
    if dtype == "F32":
        wanted = np.full(kernel.SLOTS, _BINS, np.uint32)
        wanted[: len(set(bins))] = np.unique(bins)
        low = refine(wanted)
        bits = [_refined(low[np.searchsorted(wanted, bin)], bin, rank) for bin, rank in zip(bins, within, strict=True)]
        values = widened(np.array(bits, np.uint32), dtype)
    else:
        values = widened(bins.astype(np.uint16), dtype)
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
    ranks = {rank for below, _ in places for rank in (below, min(below + 1, total - 1))}
    if sampled:
        ranks |= {rank for bound in bounds for rank in bound}
    values.partition(sorted(ranks))
    at = {rank: float(values[rank]) for rank in ranks}
    q1, median, q3 = (_between(at[below], at[min(below + 1, total - 1)], part) for below, part in places)
    if not sampled:
        return Quartiles(q1, median, q3)
    first, second, third = ((at[high] - at[low]) / 2 for low, high in bounds)
    return Quartiles(q1, median, q3, samples=total, errors=(first, second, third))


def quartiles_of_sites(
    sites: Sequence[SiteTensors], counts: Array, threads: int = 1, progress: Progress = lambda done: None
) -> Quartiles:
    """Exact quartiles of all values of some tensors, given their histogram; float32 is read once more."""
    return quartiles_of_bins(counts, sites[0].dtype, lambda bins: _count_file(sites, bins, threads, progress))


def sample_sites(sites: Sequence[SiteTensors], samples: int, progress: Progress = lambda done: None) -> Quartiles:
    """Quartiles of values drawn at random, with replacement, from some tensors."""
    total = sum(len(site.layers) * int(np.prod(site.shape)) for site in sites)
    chosen = np.sort(np.random.default_rng(SEED).integers(0, total, samples))
    values = np.empty(samples, np.float32)
    start = 0
    for site, bits in _slices(sites, _STEP, progress):
        first, last = np.searchsorted(chosen, (start, start + bits.size))
        values[first:last] = widened(bits[chosen[first:last] - start], site.dtype)
        start += bits.size
    return quartiles_of_values(values, sampled=True)


def _places(total: int) -> list[tuple[int, float]]:
    """For each quartile the rank below it, from 0, and how far it lies towards the next; in integers, so exact."""
    return [(below, rest / 4) for below, rest in (divmod((total - 1) * k, 4) for k in (1, 2, 3))]


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


def _count_file(sites: Sequence[SiteTensors], bins: Array, threads: int, progress: Progress) -> Array:
    counts = [np.zeros((kernel.SLOTS, _BINS), np.int64) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for _, bits in _slices(sites, _STEP * threads, progress):
            shares = np.array_split(bits, threads)
            list(pool.map(kernel.count_in_bins, shares, [bins] * threads, counts))
    return np.sum(counts, axis=0)


def _slices(sites: Iterable[SiteTensors], step: int, progress: Progress) -> Iterator[tuple[SiteTensors, Array]]:
    """The raw values of some tensors, a slice of the file at a time: read ahead, given back behind."""
    for site in sites:
        size, raw = itemsize(site.dtype), site.raw
        for start, stop in _spans(site):
            site.file.will_need(start * size, step * size)
            for first in range(start, stop, step):
                last = min(first + step, stop)
                site.file.will_need(last * size, (min(last + step, stop) - last) * size)
                yield site, raw[first:last]
                site.file.drop(first * size, (last - first) * size)
                progress((last - first) * size)


def _spans(site: SiteTensors) -> list[tuple[int, int]]:
    """Where in `raw` the values of some tensors lie without a gap."""
    n, t, h = site.shape
    if site.stride == len(site.layers) * t * h:
        return [(site.starts[0], site.starts[0] + n * site.stride)]
    return [(start, start + n * t * h) for start in site.starts]
