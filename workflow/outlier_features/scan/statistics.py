"""Statistics of a site that add up over chunks, and what follows from them.

Arrays are per present layer (axis 0, `layers` has the block indices) and per part of the positions (axis 1, see
`populations`). Power sums are taken about `pilot`, the mean of the corpus's first sequence, or cancellation would ruin
the higher moments.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import comb
from typing import Any

import numpy as np

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import TensorFile
from outlier_features.populations import EXCLUDED, POPULATIONS
from outlier_features.scan.tree_sum import TreeSum

Array = np.ndarray[Any, Any]


@dataclass
class SiteStatistics:
    layers: Array  # int64 (L,): blocks that have the site
    pilot: Array  # float32 (L, H)
    sums: Array  # float64 (L, 2, 4, H): sums of (x - pilot)**k, k = 1..4
    low: Array  # float32 (L, 2, H)
    high: Array  # float32 (L, 2, H)
    positive: Array  # int64 (L, 2, H): values >= 6
    negative: Array  # int64 (L, 2, H): values <= -6
    positions_hit: Array  # int64 (L, 2): positions with some abs(x) >= 6
    kurtosis: Array  # float64 (L, 2, 2): sum of the kurtosis over dims of each position, and positions that have one
    bins: Array  # uint16 (K,): occupied bins of the histogram by the top 16 bits, for each layer and part in turn
    counts: Array  # int64 (K,)
    offsets: Array  # int64 (2 * L + 1,): where each layer and part begins in `bins`
    positions: Array  # int64 (N, 2): positions of each sequence
    position_counts: Array  # int64 (2, T): sequences that have each position
    position_nodes: Array  # int64 (K, 2): nodes of a `TreeSum`
    position_sums: Array  # float64 (L, 2, K, T, 2): their sums over dims of x and x**2 at each position
    hits: Array  # int64 (N,): values of each sequence at or above the floor
    listed: Array  # uint8 (N,): 1 where these are listed, 0 where they are too many and counted instead
    top: Array  # float32 (L, N, 2, 3): the three largest abs(x) of each sequence and part
    absolute: Array  # float64 (L, N, 2): sum of abs(x)
    square: Array  # float64 (L, N, 2): sum of x**2
    median: Array  # float64 (L, N, 2): median of abs(x), by population (all, without_first)

    def arrays(self, site: str) -> dict[str, Array]:
        """The arrays as they are named in a file."""
        return {f"{site}.{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def read(cls, file: TensorFile, site: str) -> "SiteStatistics":
        return cls(**{field.name: file.array(f"{site}.{field.name}") for field in fields(cls)})

    @property
    def populations(self) -> list[str]:
        """Those of the run, see `populations.populations_of`."""
        return list(POPULATIONS) if self.positions[:, EXCLUDED].any() else ["all"]

    def count(self, population: str) -> int:
        """Positions of a population over all sequences."""
        return int(self.positions[:, POPULATIONS[population]].sum())

    def over(self, population: str, name: str) -> Array:
        """The array `name` with its part axis (1) summed, or reduced by min or max, over a population."""
        reduce = {"low": np.min, "high": np.max}.get(name, np.sum)
        return np.asarray(reduce(getattr(self, name)[:, POPULATIONS[population]], axis=1))

    def max_abs(self, population: str) -> Array:
        """Largest abs(x) of each layer and dim, float64 (L, H); 0 where the population is empty."""
        extremes = np.maximum(-self.over(population, "low"), self.over(population, "high")).astype(np.float64)
        return np.where(np.isfinite(extremes), extremes, 0.0)

    def moments_about(self, centre: Array, population: str) -> Array:
        """Sums of (x - centre)**k over a population's positions, k = 1..4, float64 (4, L, H).

        `centre` is (L, H) or (L, 1).
        """
        sums = self.over(population, "sums").transpose(1, 0, 2)
        powers = np.concatenate([np.full_like(sums[:1], self.count(population)), sums])
        shift = self.pilot.astype(np.float64) - centre
        return np.stack(
            [sum(comb(k, j) * powers[j] * shift ** (k - j) for j in range(k + 1)) for k in range(1, 5)]  # type: ignore[misc]
        )

    def channel_mean_square(self, population: str) -> tuple[Array, Array]:
        """Mean and mean square of each layer and dim, float64 (L, H)."""
        first, second, _, _ = self.moments_about(np.zeros((len(self.layers), 1)), population)
        count = max(self.count(population), 1)
        return first / count, second / count

    def flat_kurtosis(self, population: str) -> Array:
        """Excess (Fisher) kurtosis of all values of a layer, float64 (L,)."""
        mean, _ = self.channel_mean_square(population)
        moments = self.moments_about(mean.mean(axis=1, keepdims=True), population).mean(axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            return moments[3] * max(self.count(population), 1) / moments[1] ** 2 - 3.0

    def token_kurtosis(self, population: str) -> Array:
        """Pearson kurtosis over the dims of a position, averaged over positions, float64 (L,)."""
        total, positions = self.over(population, "kurtosis").T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(total / positions)

    def channel_kurtosis(self, population: str) -> Array:
        """mean_h(s_h**4) / mean_h(s_h**2)**2 with s_h the RMS of dim h, float64 (L,), from 1 to d."""
        _, square = self.channel_mean_square(population)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((square**2).mean(axis=1) / square.mean(axis=1) ** 2)

    def position_moments(self, population: str) -> tuple[Array, Array]:
        """Of each position the sequences that have it in a population, int64 (T,); mean and mean square over these and
        the dims, float64 (L, T, 2)."""
        counts = self.position_counts[list(POPULATIONS[population])].sum(axis=0)
        sums = self.over(population, "position_sums").sum(axis=1)
        return counts, sums / (np.maximum(counts, 1) * self.pilot.shape[1])[:, None]

    def sequence_top(self, population: str) -> Array:
        """The three largest abs(x) of each layer and sequence, float32 (L, N, 3)."""
        members = self.top[:, :, POPULATIONS[population]]
        return -np.sort(-members.reshape(*members.shape[:2], -1), axis=2)[:, :, :3]


def sparse_histogram(histogram: Array) -> tuple[Array, Array, Array]:
    """`bins`, `counts`, `offsets` of dense histograms (L, 2, 65536)."""
    flat = histogram.reshape(-1)
    occupied = np.flatnonzero(flat != 0)  # of booleans it is two to four times as fast
    offsets = np.searchsorted(occupied, np.arange(2 * len(histogram) + 1) * histogram.shape[-1])
    return (occupied & 0xFFFF).astype(np.uint16), flat[occupied].astype(np.int64), offsets.astype(np.int64)


def merge(parts: Iterable[SiteStatistics]) -> SiteStatistics:
    """Statistics of a site over chunks, given in the order of their sequences."""
    parts = list(parts)
    first = parts[0]
    for part in parts[1:]:
        if not (np.array_equal(part.layers, first.layers) and np.array_equal(part.pilot, first.pilot)):
            raise InputError("the statistics of two chunks were taken about different pilots, or of other layers")
    layers, kinds = len(first.layers), 2 * len(first.layers)
    histogram = np.zeros((kinds, 1 << 16), np.int64)
    for part in parts:
        rows = np.repeat(np.arange(kinds), np.diff(part.offsets))
        histogram[rows, part.bins] += part.counts
    bins, counts, offsets = sparse_histogram(histogram.reshape(layers, 2, -1))

    by_position = TreeSum()
    for part in parts:
        for node, (begin, size) in enumerate(part.position_nodes.tolist()):
            by_position.add(begin, size, part.position_sums[:, :, node])

    def together(name: str, combine: Any) -> Array:
        return np.asarray(combine([getattr(part, name) for part in parts]))

    return SiteStatistics(
        layers=first.layers,
        pilot=first.pilot,
        low=together("low", lambda arrays: np.min(arrays, axis=0)),
        high=together("high", lambda arrays: np.max(arrays, axis=0)),
        bins=bins,
        counts=counts,
        offsets=offsets,
        position_nodes=by_position.nodes,
        position_sums=by_position.sums(axis=2),
        **{name: together(name, np.concatenate) for name in ("positions", "hits", "listed")},
        **{name: together(name, lambda arrays: np.sum(arrays, axis=0))
           for name in ("sums", "positive", "negative", "positions_hit", "kurtosis", "position_counts")},
        **{name: together(name, lambda arrays: np.concatenate(arrays, axis=1))
           for name in ("top", "absolute", "square", "median")},
    )  # fmt: skip
