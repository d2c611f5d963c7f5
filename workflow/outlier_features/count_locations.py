"""Rule `location`: values over a threshold at locations (sequence, token, dim) that enough layers of a site hit.

Exact for any number of sequences, in memory that does not grow with them. A site is read once, and float32 once more
for its quartiles.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np

from outlier_features import count_kernel as kernel
from outlier_features.errors import InputError
from outlier_features.populations import REST
from outlier_features.quantiles import (
    Progress,
    Quartiles,
    quartiles_of_bins,
    quartiles_of_sites,
    quartiles_of_values,
    sample_sites,
)
from outlier_features.scan import Hits, SiteTensors, itemsize, scan
from outlier_features.tensorfile import TensorFile

Array = np.ndarray[Any, Any]

ONE_SIDED = Fraction(95, 100)
_BLOCK_VALUES = 1 << 22  # few, since all of them may be hits
_PIECE_ROWS = 1 << 19  # sequences x layers of one scan, which keeps some numbers for each
_PIECE_VALUES = 1 << 31  # of one layer in one scan, whose histogram counts in 32 bits
_KEPT_VALUES = 1 << 24  # abs(x) of that many kept occurrences are held in memory


@dataclass(frozen=True)
class LocationRule:
    """The threshold is compared as float32; `min_layer_fraction` None asks for one layer."""

    threshold: float = 6.0
    inclusive: bool = False
    min_layer_fraction: float | None = 0.25

    @property
    def floor(self) -> float:
        """The smallest abs(x) that is over the threshold."""
        threshold = np.float32(self.threshold)
        with np.errstate(over="ignore"):
            return float(threshold if self.inclusive else np.nextafter(threshold, np.float32(np.inf)))

    def needed(self, layers: int) -> int:
        """How many of some layers must hit a location; by the fraction as it is written, since 0.07 * 100 > 7."""
        return max(1, ceil(Fraction(repr(self.min_layer_fraction or 0.0)) * layers))


@dataclass(frozen=True)
class LocationCount:
    """What was counted. Arrays over dims are of all dims; `layers` are block indices, in the order of the arrays."""

    shape: tuple[int, int, int, int]  # (N, L, T, H)
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


def site_tensors(file: TensorFile, key: str) -> SiteTensors:
    """The activations named `key`: one tensor (N, L, T, H), or `{key}.{layer}` of shape (N, T, H)."""
    site = SiteTensors.stacked(file, key) if key in file.entries else SiteTensors.per_layer(file, key)
    if site is None:
        raise InputError(f"{file.path}: has no tensor {key!r}{_nearest(file, key)}")
    if not site.layers or not all(site.shape):
        raise InputError(f"{file.path}: {key} of shape {_shape([site])} is empty, expected at least one value")
    if site.layers[-1] > np.iinfo(np.uint16).max:
        raise InputError(f"{file.path}: {key}.{site.layers[-1]} found, expected layers up to 65535")
    return site


def _nearest(file: TensorFile, key: str) -> str:
    stems = (name.rpartition(".") for name in file.entries)
    names = {stem if stem and layer.isdecimal() else stem + dot + layer for stem, dot, layer in stems}
    nearest = difflib.get_close_matches(key, sorted(names), n=5, cutoff=0.5) or sorted(names)[:5]
    return f", nearest: {', '.join(nearest)}" if nearest else ""


def count_locations(
    sites: Sequence[SiteTensors],
    rule: LocationRule,
    *,
    value_samples: int = 0,
    magnitude_samples: int = 0,
    threads: int = 1,
    progress: Progress = lambda done: None,
) -> LocationCount:
    """Count the outliers of a site, given as tensors that are joined along N.

    value_samples       how many of all values to draw for their quartiles; 0: exact
    magnitude_samples   how many abs(x) of kept occurrences to draw for theirs; 0: exact
    progress            called with the number of bytes read since the last call

    Raises `InputError` on NaN or infinite values.
    """
    _require_alike(sites)
    counter = _Counter(sites, rule, magnitude_samples)
    histogram = np.zeros(1 << 16, np.int64)
    for bins, counts in _scan(sites, counter, threads, not value_samples, progress):
        np.add.at(histogram, bins, counts)
    if value_samples:
        quartiles = sample_sites(sites, value_samples, progress)
    else:
        quartiles = quartiles_of_sites(sites, histogram, threads, progress)
    tallies, layers = counter.tallies, list(sites[0].layers)
    found = int(tallies.totals[kernel.OCCURRENCES])
    return LocationCount(
        shape=_shape(sites),
        dtype=sites[0].dtype,
        rule=rule,
        over=counter.over,
        locations=int(tallies.totals[kernel.LOCATIONS]),
        quartiles=quartiles,
        layers=sites[0].layers,
        dim_counts=tallies.dims,
        dim_positive=tallies.positive,
        dim_negative=tallies.negative,
        layer_counts=tallies.layers[layers],
        first_layer_counts=tallies.first_layers[layers],
        token_counts=tallies.tokens,
        extremes=(float(tallies.extremes[0]), float(tallies.extremes[1])) if found else None,
        magnitudes=_magnitudes(sites, counter, threads, progress) if found else None,
    )


def _shape(sites: Sequence[SiteTensors]) -> tuple[int, int, int, int]:
    _, t, h = sites[0].shape
    return sum(site.shape[0] for site in sites), len(sites[0].layers), t, h


def _require_alike(sites: Sequence[SiteTensors]) -> None:
    first = sites[0]
    for site in sites[1:]:
        if (site.dtype, site.layers, site.shape[1:]) != (first.dtype, first.layers, first.shape[1:]):
            raise InputError(
                f"{site.file.path}: {site.site} is {site.dtype} {list(_shape([site]))}, expected {first.dtype} "
                f"{list(_shape([first]))} but for N, and the same layers, as in {first.file.path}"
            )


class _Counter:
    """Takes the hits of blocks of sequences."""

    def __init__(self, sites: Sequence[SiteTensors], rule: LocationRule, samples: int):
        _, layers, self._tokens, self._dims = _shape(sites)
        self.floor, self._needed, self.sampled = rule.floor, rule.needed(layers), bool(samples)
        elements = int(np.prod(_shape(sites)))
        capacity = min(samples or _KEPT_VALUES, elements)
        self.tallies = kernel.new_tallies(sites[0].layers[-1] + 1, self._tokens, self._dims, capacity)
        self.over = 0
        self._layer_hits = np.zeros(0, np.uint16)

    def add(self, hits: Hits) -> None:
        self.over += len(hits.value)
        kernel.tally_kept(
            hits.sequence, hits.layer, hits.token, hits.dim, hits.value,
            self._needed, self.sampled, self._count_layers(hits), self.tallies,
        )  # fmt: skip

    def kept(self, hits: Hits) -> Array:
        """The bits of abs(x) of the kept hits."""
        bits: Array = kernel.select_kept(
            hits.sequence, hits.token, hits.dim, hits.value,
            self._needed, self._tokens, self._dims, self._count_layers(hits),
        )  # fmt: skip
        return bits

    def _count_layers(self, hits: Hits) -> Array:
        sequences = int(hits.sequence[-1]) - int(hits.sequence[0]) + 1 if len(hits.sequence) else 0
        size = sequences * self._tokens * self._dims
        if size > self._layer_hits.size:
            self._layer_hits = np.empty(size, np.uint16)
        layer_hits = self._layer_hits[:size]
        layer_hits[:] = 0
        kernel.count_layers(hits.sequence, hits.token, hits.dim, self._tokens, self._dims, layer_hits)
        return layer_hits


def _scan(
    sites: Sequence[SiteTensors], counter: _Counter, threads: int, histogram: bool, progress: Progress
) -> Iterator[tuple[Array, Array]]:
    """Give all hits to the counter; yields bins of values by their top 16 bits, and how many values they have."""
    for piece in _pieces(sites):
        statistics = _scan_piece(piece, counter.floor, counter.add, threads, histogram, progress)
        yield statistics.bins, statistics.counts


def _scan_piece(
    piece: SiteTensors, floor: float, on_hits: Any, threads: int, histogram: bool, progress: Progress
) -> Any:
    n, t, h = piece.shape
    sequence_bytes = len(piece.layers) * t * h * itemsize(piece.dtype)
    done = 0

    def report(sequences: int) -> None:
        nonlocal done
        progress((sequences - done) * sequence_bytes)
        done = sequences

    return scan(
        piece,
        np.full((n, t), REST, np.uint8),
        np.zeros((len(piece.layers), h), np.float32),
        floor,
        on_hits=on_hits,
        threads=threads,
        profile=False,
        histogram=histogram,
        block_values=_BLOCK_VALUES,
        progress=report,
    )


def _pieces(sites: Sequence[SiteTensors]) -> Iterator[SiteTensors]:
    """The tensors in ranges of sequences that one scan can take."""
    for site in sites:
        n, t, h = site.shape
        step = max(1, min(_PIECE_ROWS // len(site.layers), _PIECE_VALUES // (t * h)))
        for first in range(0, n, step):
            starts = tuple(start + first * site.stride for start in site.starts)
            yield replace(site, shape=(min(step, n - first), t, h), starts=starts)


def _magnitudes(sites: Sequence[SiteTensors], counter: _Counter, threads: int, progress: Progress) -> Quartiles:
    """Quartiles of abs(x) of the kept occurrences: of those in memory, or, if those are not all, by another scan."""
    tallies = counter.tallies
    found, held = int(tallies.totals[kernel.OCCURRENCES]), tallies.values.size
    if found <= held or counter.sampled:
        return quartiles_of_values(tallies.values[: min(found, held)], sampled=found > held)

    def refine(bins: Array) -> Array:
        counts = np.zeros((kernel.SLOTS, 1 << 16), np.int64)
        for piece in _pieces(sites):
            _scan_piece(
                piece,
                counter.floor,
                lambda hits: kernel.count_in_bins(counter.kept(hits), bins, counts),
                threads,
                False,
                progress,
            )
        return counts

    histogram = np.concatenate([tallies.histogram, np.zeros_like(tallies.histogram)])  # no abs(x) is negative
    return quartiles_of_bins(histogram, "F32", refine)


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
