"""Rule `location`: values over a threshold at locations (sequence, token, dim) that enough layers of a site hit.

Exact for any number of sequences, of any length, in memory that does not grow with them. A site is read once, and
float32 once more for exact quartiles.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, prod
from typing import Any

import numpy as np

from outlier_features.locate import count_kernel as kernel
from outlier_features.locate.quantiles import (
    SLOTS,
    Progress,
    Quartiles,
    quartile_bins,
    quartiles_of_bins,
    quartiles_of_values,
    sample_site,
)
from outlier_features.locate.slabs import Slab, slabs_of, work_through
from outlier_features.scan.scan import require_finite
from outlier_features.scan.site_tensors import SiteTensors, itemsize, widened

Array = np.ndarray[Any, Any]

ONE_SIDED = Fraction(95, 100)
_SLAB_VALUES = 1 << 20  # of all layers, read and worked on by one thread


@dataclass(frozen=True)
class LocationRule:
    """The threshold is compared as float32; `layer_share` None asks for one layer."""

    threshold: float = 6.0
    inclusive: bool = False
    layer_share: float | None = 0.25

    @property
    def floor(self) -> float:
        """The smallest abs(x) that is over the threshold."""
        threshold = np.float32(self.threshold)
        with np.errstate(over="ignore"):
            return float(threshold if self.inclusive else np.nextafter(threshold, np.float32(np.inf)))

    def needed(self, layers: int) -> int:
        """How many of some layers must hit a location; by the fraction as it is written, since 0.07 * 100 > 7."""
        return max(1, ceil(Fraction(repr(self.layer_share or 0.0)) * layers))


@dataclass(frozen=True)
class LocationCount:
    """What was counted. Arrays over dims are of all dims; `layers` are block indices, in the order of the arrays."""

    shape: tuple[int, int, int, int]  # (N, L, T, H)
    positions: int  # (sequence, token) that were counted
    ragged: bool  # whether sequences differ in length
    dtype: str
    rule: LocationRule
    over: int
    locations: int
    quartiles: Quartiles
    layers: tuple[int, ...]
    dim_counts: Array
    dim_positive: Array
    dim_negative: Array
    layer_counts: Array
    first_layer_counts: Array
    token_counts: Array
    extremes: tuple[float, float] | None  # of abs(x) of the kept occurrences
    magnitudes: Quartiles | None

    @property
    def occurrences(self) -> int:
        return int(self.dim_counts.sum())

    @property
    def dims(self) -> Array:
        """Dims with kept occurrences, by count, then index."""
        order = np.argsort(-self.dim_counts, kind="stable")
        return order[: np.count_nonzero(self.dim_counts)]

    def one_sided(self, dim: int) -> bool:
        largest = max(int(self.dim_positive[dim]), int(self.dim_negative[dim]))
        return largest >= ONE_SIDED * int(self.dim_counts[dim])


def count_locations(
    sites: Sequence[SiteTensors],
    rule: LocationRule,
    *,
    members: Array | None = None,
    value_samples: int = 0,
    magnitude_samples: int = 0,
    threads: int = 1,
    progress: Progress = lambda done: None,
) -> LocationCount:
    """Count the outliers of a site, given as tensors that are joined along N.

    members             bool (N, T): the positions that are counted, at least one; None: all but padding
    value_samples       how many of all values to draw for their quartiles; 0: exact. Of all positions only.
    magnitude_samples   how many abs(x) of kept occurrences to draw for theirs; 0: exact
    progress            called with the number of bytes read since the last call

    Raises `InputError` on NaN or infinite values.
    """
    site = SiteTensors.joined(sites)
    dtype = site.dtype
    members = site.mask if members is None else members
    counter = _Counter(site, rule, members, threads, progress)
    counts, keys = counter.count(not value_samples, magnitude_samples)
    found = int(counts.totals[kernel.OCCURRENCES])
    kept = np.concatenate([counts.magnitudes, np.zeros_like(counts.magnitudes)])  # no abs(x) is negative
    exact = (None if value_samples else counts.histogram, None if magnitude_samples or not found else kept)
    low = counter.refine(exact)
    quartiles, magnitudes = (
        None if histogram is None else quartiles_of_bins(histogram, dtype, counted)
        for histogram, counted in zip(exact, low, strict=True)
    )
    if found and magnitude_samples:
        magnitudes = quartiles_of_values(_of_bits(keys & np.uint64(0xFFFFFFFF), dtype), sampled=found > len(keys))
    return LocationCount(
        shape=site.full_shape,
        positions=int(site.lengths.sum()) if members is None else int(members.sum()),
        ragged=site.mask is not None,
        dtype=site.stored,
        rule=rule,
        over=int(counts.totals[kernel.OVER]),
        locations=int(counts.totals[kernel.LOCATIONS]),
        quartiles=quartiles or sample_site(site, value_samples, progress),
        layers=site.layers,
        dim_counts=counts.dims,
        dim_positive=counts.positive,
        dim_negative=counts.negative,
        layer_counts=counts.layers,
        first_layer_counts=counts.first_layers,
        token_counts=counts.tokens,
        extremes=_extremes(counts, dtype) if found else None,
        magnitudes=magnitudes,
    )


class _Counter:
    """Makes the passes over a site."""

    def __init__(
        self,
        site: SiteTensors,
        rule: LocationRule,
        members: Array | None,
        threads: int,
        progress: Progress,
    ):
        self._site, self._members, self._threads, self._progress = site, members, threads, progress
        self._shape, self._dtype = site.full_shape, site.dtype
        self._bits = _threshold_bits(rule.floor, self._dtype)
        self._needed = rule.needed(self._shape[1])

    def count(self, histogram: bool, samples: int) -> tuple[kernel.Counts, Array]:
        """The counts, and keys of the sampled kept occurrences (uint64), abs(x) in their low 32 bits."""
        _, layers, tokens, dims = self._shape
        counts = [kernel.new_counts(layers, tokens, dims) for _ in range(self._threads)]
        states = [(one, self._scratch(bool(samples))) for one in counts]
        sample = _Sample(min(samples, prod(self._shape)), len(states[0][1].keys))

        def work(slab: Slab, state: tuple[kernel.Counts, kernel.Scratch]) -> Array:
            _, scratch = state
            found = kernel.count_slab(
                *_read(slab, scratch), self._bits, self._needed, histogram, sample.limit, slab.first, *state
            )
            return scratch.keys[:found].copy()

        for slab, found in work_through(self._slabs(), work, states):
            sample.add(found)
            self._progress(slab.nbytes)
        require_finite(self._site, sum(one.nonfinite for one in counts))
        return _merge(counts), sample.keys

    def refine(self, histograms: tuple[Array | None, Array | None]) -> tuple[Array | None, Array | None]:
        """What `quartiles_of_bins` needs beside a histogram: of all values, and of abs(x) of the kept occurrences."""
        if self._dtype != "F32" or all(histogram is None for histogram in histograms):
            return None, None
        unused = np.full(SLOTS, kernel.BINS, np.uint32)
        bins = np.stack([unused if histogram is None else quartile_bins(histogram) for histogram in histograms])
        states = [(np.zeros((2, SLOTS, kernel.BINS), np.int64), self._scratch()) for _ in range(self._threads)]

        def work(slab: Slab, state: tuple[Array, kernel.Scratch]) -> None:
            kernel.refine_slab(*_read(slab, state[1]), self._bits, self._needed, bins, *state)

        for slab, _ in work_through(self._slabs(), work, states):
            self._progress(slab.nbytes)
        values, magnitudes = np.sum([low for low, _ in states], axis=0)
        return values, magnitudes

    def _slabs(self) -> Iterator[Slab]:
        return slabs_of(self._site, _SLAB_VALUES, self._members)

    def _scratch(self, keys: bool = False) -> kernel.Scratch:
        _, layers, t, h = self._shape
        return kernel.new_scratch(layers, t * h, itemsize(self._dtype), max(_SLAB_VALUES, layers), keys)


def _read(slab: Slab, scratch: kernel.Scratch) -> tuple[Array, tuple[int, int, int]]:
    return slab.read(scratch.raw), (slab.last - slab.first, slab.begin, slab.end)


def _threshold_bits(floor: float, dtype: str) -> Array:
    """All bits but the sign, the smallest abs(x) at or above `floor`, and infinity."""
    if dtype == "F32":
        return np.array([0x7FFFFFFF, np.float32(floor).view(np.uint32), 0x7F800000], np.uint32)
    infinity = {"BF16": 0x7F80, "F16": 0x7C00}[dtype]
    magnitudes = widened(np.arange(infinity + 1, dtype=np.uint16), dtype)
    return np.array([0x7FFF, np.searchsorted(magnitudes, np.float32(floor)), infinity], np.uint16)


def _of_bits(bits: Array, dtype: str) -> Array:
    return widened(bits.astype(f"u{itemsize(dtype)}"), dtype)


def _extremes(counts: kernel.Counts, dtype: str) -> tuple[float, float]:
    smallest, largest = _of_bits(counts.extremes, dtype).tolist()
    return smallest, largest


def _merge(counts: Sequence[kernel.Counts]) -> kernel.Counts:
    merged = kernel.Counts(*(np.sum(arrays, axis=0) for arrays in zip(*counts, strict=True)))
    lows, highs = zip(*(one.extremes for one in counts), strict=True)
    return merged._replace(extremes=np.array([min(lows), max(highs)]))


class _Sample:
    """Keeps the smallest keys, whose high bits are random: a sample without replacement, whatever their order."""

    def __init__(self, size: int, most: int):
        """`most`: how many keys are added at a time."""
        self._size, self._held = size, 0
        self._keys = np.empty(2 * size + most if size else 0, np.uint64)
        self.limit = np.uint64(np.iinfo(np.uint64).max if size else 0)  # no key at or above it is wanted

    def add(self, keys: Array) -> None:
        self._keys[self._held : self._held + len(keys)] = keys
        self._held += len(keys)
        if self._held > 2 * self._size:
            self._held = len(self.keys)
            self.limit = self._keys[self._size - 1]

    @property
    def keys(self) -> Array:
        keys = self._keys[: self._held]
        if self._held > self._size:
            keys.partition(self._size - 1)
        return keys[: self._size]


@dataclass(frozen=True)
class DimComparison:
    """Dims with kept occurrences in two counts; `common` and `min_counts` by smaller count, then index."""

    dims: tuple[int, int]
    common: Array
    min_counts: Array

    @property
    def jaccard(self) -> float | None:
        union = sum(self.dims) - len(self.common)
        return len(self.common) / union if union else None


def compare_dims(first: LocationCount, second: LocationCount) -> DimComparison:
    smaller = np.minimum(first.dim_counts, second.dim_counts)
    common = np.argsort(-smaller, kind="stable")[: np.count_nonzero(smaller)]
    return DimComparison((len(first.dims), len(second.dims)), common, smaller[common])
