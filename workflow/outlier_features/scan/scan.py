"""One streaming pass over the activations of a site, wherever they lie, in memory that does not grow with them.

Its hits are listed, sequence by sequence. Where a sequence has too many, the list would grow with the activations: then
its hits are left out and have to be counted, see `dense`. What is asked of one sequence alone depends on no chunks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, zip_longest
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np

from outlier_features.errors import InputError
from outlier_features.populations import EXCLUDED, PADDING, REST
from outlier_features.scan import dense_kernel, scaled_kernel
from outlier_features.scan import scan_kernel as kernel
from outlier_features.scan.scales import Scale
from outlier_features.scan.site_tensors import SiteTensors
from outlier_features.scan.statistics import SiteStatistics, sparse_histogram
from outlier_features.scan.tree_sum import TreeSum

Array = np.ndarray[Any, Any]

KINDS = {"F32": kernel.FLOAT32, "BF16": kernel.BFLOAT16, "F16": kernel.FLOAT16}
_BLOCK_VALUES = 1 << 26  # values of all layers that are looked at together


def pilot_means(tensors: SiteTensors, parts: Array) -> Array:
    """Mean of each layer and dim over the rest positions of the file's first sequence, float32 (L, H).

    `parts` (T,) are that sequence's; its excluded positions count if it has no others.
    """
    chosen = parts == REST if (parts == REST).any() else parts != PADDING
    if not chosen.any():
        return np.zeros((len(tensors.layers), tensors.shape[2]), np.float32)
    return np.stack(
        [
            tensors.sequence(layer, 0)[chosen].mean(axis=0, dtype=np.float64).astype(np.float32)
            for layer in range(len(tensors.layers))
        ]
    )


def runs_of(parts: Array) -> tuple[Array, Array]:
    """Runs of equal part, int64 (R, 3): first position, one past the last, part; and where each sequence's begin.

    Padding is left out. The second array is int64 (N + 1,).
    """
    n, t = parts.shape
    begins = np.ones((n, t), bool)
    begins[:, 1:] = parts[:, 1:] != parts[:, :-1]
    sequence, first = np.nonzero(begins)
    last = np.append(np.where(sequence[1:] == sequence[:-1], first[1:], t), t) if len(first) else first
    part = parts[sequence, first]
    counted = part != PADDING
    starts = np.searchsorted(sequence[counted], np.arange(n + 1))
    return np.stack([first, last, part], axis=1)[counted].astype(np.int64), starts.astype(np.int64)


@dataclass(frozen=True)
class Hits:
    """Values at or above the floor, one entry each, ordered by sequence, layer, token, dim."""

    sequence: Array  # uint32, from 0 in the file
    layer: Array  # uint16, the block's index
    token: Array  # uint32
    dim: Array  # uint32
    value: Array  # float32
    part: Array  # uint8


@dataclass(frozen=True)
class ScaledHits(Hits):
    """Values that are large against a scale, in the same order."""

    scale: str
    scaled: Array  # float64: value over the scale
    unlisted: Array  # sequences that have too many


class SiteScan:
    """The scan of a site whose sequences are handed over some at a time, in order; what comes out depends on no pieces.

    like          tensors of the site: layers, dims and format are those of all
    parts         uint8 (N, T), see `populations`
    pilot         float32 (L, H): power sums are taken about it
    floor         abs(x) at or above it is a hit: a number, or float32 (L, H)
    start         the run's number of the first sequence
    pool          its threads work on the layers, at most `threads` at a time
    max_density   a sequence's hits are not listed if they are more than this share of its values
    massive       `threshold` and `ratio`: values above both, as of massive activations, are listed all the same
    scaled        by name (see `scales`), from what multiple of the scale on values are listed too
    profile       whether to take medians, mean abs(x), mean square (for `layer_rms`), kurtosis per position, and mean
                  and mean square by position
    """

    def __init__(
        self,
        like: SiteTensors,
        parts: Array,
        pilot: Array,
        floor: float | Array,
        pool: ThreadPoolExecutor,
        threads: int,
        *,
        start: int = 0,
        max_density: float = 1.0,
        massive: Mapping[str, float] | None = None,
        scaled: Mapping[str, Scale] | None = None,
        profile: bool = True,
        histogram: bool = True,
    ):
        if scaled and "layer_rms" in scaled and not profile:
            raise ValueError("layer_rms is made of the mean squares that only profile takes")
        self._parts, self._pilot, self._pool, self._like = parts, pilot, pool, like
        self._massive, self._scales = massive, scaled or {}
        self._profile, self._histogram = profile, histogram
        n, t = parts.shape
        layers, self._dims = len(like.layers), like.shape[2]
        self._floors = np.broadcast_to(np.asarray(floor, np.float32), (layers, self._dims))
        self._states, self._per_sequence = kernel.new_layers(layers, self._dims), kernel.new_sequences(n, layers)
        self._scratches: SimpleQueue[kernel.Scratch] = SimpleQueue()
        for _ in range(threads):
            self._scratches.put(kernel.new_scratch(t, self._dims))
        self._limits = max_density * layers * self._dims * (parts != PADDING).sum(axis=1)
        self._hits, self._counting = np.zeros(n, np.int64), Lock()
        self._positions = _positions(parts)
        self._start, self._by_position = start, TreeSum()
        self._done = 0

    def add(self, tensors: SiteTensors, first: int, last: int) -> tuple[Hits, list[ScaledHits]]:
        """Scan the next sequences, which are `first` to before `last` of these tensors; returns what is listed of them.

        Sequences are numbered as in `parts`, from 0.
        """
        block = _Block(tensors, first, last, self._done, *runs_of(self._parts[self._done :][: last - first]))
        layers = range(len(tensors.layers))
        at = np.zeros((len(layers), last - first, 2, self._parts.shape[1], 2))
        scanned = list(self._pool.map(partial(self._scan_and_scale, block), layers, at))
        for n in range(last - first):
            self._by_position.add(self._start + self._done + n, 1, at[:, n])
        hits = list(self._pool.map(partial(self._cut_layer, block), layers, [listed for listed, _ in scanned]))
        scaled = [
            _scaled_in_order(name, [scaled_hits[name] for _, scaled_hits in scanned], tensors, self._parts, self._done)
            for name in self._scales
        ]
        listed = Hits(*_in_order(hits, tensors, self._parts, self._done))
        self._done += last - first
        return listed, scaled

    def listed(self, first: int, last: int) -> Array:
        """Whether the hits of sequences, which were scanned, are few enough to be listed, bool."""
        return self._hits[first:last] <= self._limits[first:last]

    def statistics(self) -> SiteStatistics:
        """Of all sequences that were handed over. Raises `InputError` where some of their values are not finite."""
        require_finite(self._like, self._states.nonfinite.sum(axis=1))
        listed = self._hits <= self._limits
        of_sequences, at = self._per_sequence, self._by_position
        return _gather(self._like, self._parts, self._pilot, self._states, of_sequences, at, self._hits, listed)

    def _scan_and_scale(
        self, block: "_Block", layer: int, at: Array
    ) -> tuple[tuple[Array, ...], dict[str, tuple[Array, ...]]]:
        listed = self._scan_layer(block, layer, at)
        return listed, {name: self._list_scaled(block, layer, name) for name in self._scales}  # while it is cached

    def _scan_layer(self, block: "_Block", layer: int, at: Array) -> tuple[Array, ...]:
        scratch, here = self._scratches.get(), block.here
        with self._counting:  # of a sequence that has too many hits already, no more are listed
            most = np.maximum(self._limits[here] - self._hits[here], 0).astype(np.int64)
        found, *listed = kernel.scan_layer(
            *block.bits(layer), layer, block.runs, block.run_starts, self._pilot[layer], self._floors[layer], most,
            self._profile, self._histogram, self._states,
            kernel.Sequences(*(array[here] for array in self._per_sequence)), at, scratch,
        )  # fmt: skip
        with self._counting:
            self._hits[here] += found
        self._scratches.put(scratch)
        return tuple(listed)

    def _list_scaled(self, block: "_Block", layer: int, name: str) -> Any:
        scale, scratch = self._scales[name], self._scratches.get()
        of_part = self._positions[block.here]
        units = scale.units(name, self._per_sequence.square[block.here, layer], of_part, self._dims)
        listed = scaled_kernel.list_scaled(
            *block.bits(layer), block.runs, block.run_starts, float(scale.k), units,
            *scale.gains_and_reach(layer, self._dims), scale.most(of_part.sum(axis=1) * self._dims), scratch.tile,
        )  # fmt: skip
        self._scratches.put(scratch)
        return listed

    def _cut_layer(self, block: "_Block", layer: int, hits: tuple[Array, ...]) -> Any:
        """The listed hits of a layer, of dense sequences but those that may be massive."""
        dense = self._hits[block.here] > self._limits[block.here]
        if not dense.any():
            return hits
        bounds, massive = np.full(len(dense), np.inf), self._massive
        if massive is not None:
            medians = np.fmin(*self._per_sequence.median[block.here, layer].T)
            bounds[dense] = massive["ratio"] * medians[dense]
        scratch = self._scratches.get()
        extreme = dense_kernel.list_above(
            *block.bits(layer), block.runs, block.run_starts, self._dims,
            massive["threshold"] if massive else np.inf, bounds, scratch.tile,
        )  # fmt: skip
        self._scratches.put(scratch)
        return _instead(hits, extreme, dense)


@dataclass(frozen=True)
class _Block:
    """Sequences first..last of tensors, which are those from `start` on of a scan; `runs_of` their positions."""

    tensors: SiteTensors
    first: int
    last: int
    start: int
    runs: Array
    run_starts: Array

    @property
    def here(self) -> slice:
        return slice(self.start, self.start + self.last - self.first)

    def bits(self, layer: int) -> tuple[Array, Array, int]:
        """As the kernels take a layer's values."""
        return *self.tensors.bits(layer, self.first, self.last), KINDS[self.tensors.dtype]


def scan(
    tensors: SiteTensors,
    parts: Array,
    pilot: Array,
    floor: float | Array,
    *,
    on_hits: Callable[[Hits], None],
    on_scaled_hits: Callable[[ScaledHits], None] = lambda hits: None,
    threads: int = 1,
    **options: Any,
) -> SiteStatistics:
    """Scan a site's activations once, wherever they lie.

    on_hits          called with the listed hits of some sequences at a time, in order
    on_scaled_hits   called with those of some sequences at a time, in order, scale by scale
    options          as of `SiteScan`

    Raises `InputError` on NaN or infinite values.
    """
    with ThreadPoolExecutor(threads) as pool:
        scanning = SiteScan(tensors, parts, pilot, floor, pool, threads, **options)
        for first, last in read_ahead([tensors]):
            hits, scaled = scanning.add(tensors, first, last)
            tensors.drop(first, last)
            on_hits(hits)
            for one in scaled:
                on_scaled_hits(one)
    return scanning.statistics()


def read_ahead(sites: Sequence[SiteTensors]) -> Iterator[tuple[int, int]]:
    """Ranges of sequences that are small enough to be looked at together, each read ahead while the last is worked on.

    sites   tensors of the same sequences
    """
    begins = sorted({first for tensors in sites for first, _ in tensors.blocks(_BLOCK_VALUES // len(sites))})
    blocks = list(pairwise([*begins, sites[0].shape[0]])) if sites else []
    for block in blocks[:1]:
        for tensors in sites:
            tensors.will_need(*block)
    for block, following in zip_longest(blocks, blocks[1:]):
        for tensors in sites if following else ():
            tensors.will_need(*following)
        yield block


def _in_order(hits: Sequence[tuple[Array, ...]], tensors: SiteTensors, parts: Array, first: int) -> list[Any]:
    """Put the hits of a block, given for each layer in turn, in the order of sequences, from `first`, then layers.

    Returns the columns of `Hits`, and after them those that a hit of a layer has after its value.
    """
    hits_of = np.stack([one[0] for one in hits])  # (L, B)
    begins = np.cumsum(hits_of.reshape(-1)).reshape(hits_of.shape) - hits_of
    sizes, begins = hits_of.T.reshape(-1), begins.T.reshape(-1)
    order = np.repeat(begins - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    token, dim, value, *others = (np.concatenate(columns)[order] for columns in list(zip(*hits, strict=True))[1:])
    sequence = np.repeat(np.arange(first, first + hits_of.shape[1], dtype=np.uint32), hits_of.sum(axis=0))
    layer = np.repeat(np.tile(np.asarray(tensors.layers, np.uint16), hits_of.shape[1]), sizes)
    return [sequence, layer, token, dim, value, parts[sequence, token], *others]


def _scaled_in_order(
    name: str, hits: Sequence[tuple[Array, ...]], tensors: SiteTensors, parts: Array, first: int
) -> ScaledHits:
    """The hits of a block without those of sequences that have too many in a layer, of which the count is -1."""
    over = np.any([one[0] < 0 for one in hits], axis=0)
    nothing = (np.zeros(len(over), np.int64), *(column[:0] for column in hits[0][1:]))
    kept = [_instead((np.maximum(one[0], 0), *one[1:]), nothing, over) for one in hits] if over.any() else hits
    *columns, scaled = _in_order(kept, tensors, parts, first)
    return ScaledHits(*[*columns, name, scaled, first + np.flatnonzero(over)])


def require_finite(tensors: SiteTensors, nonfinite: Array) -> None:
    """Raise `InputError` where some of the counts (L,) of NaN or infinite values are not zero."""
    hint = "float16 overflows above 65504; try bfloat16 or float32"
    if tensors.stored == "F64":
        hint = "float64 is read as float32, which ends at 3.4e38"
    for layer, count in zip(tensors.layers, nonfinite, strict=True):
        if count:
            raise InputError(
                f"{tensors.path}: site {tensors.site}, layer {layer} has {count} values that are NaN or infinite, "
                f"expected finite ones ({hint})"
            )


def _instead(hits: tuple[Array, ...], others: tuple[Array, ...], chosen: Array) -> tuple[Array, ...]:
    """The hits of a layer with `others` in the place of those of the `chosen` sequences (B,), which they are all of."""
    counts = np.where(chosen, 0, hits[0])
    sequence = np.repeat(np.arange(len(chosen)), hits[0])
    kept = ~chosen[sequence]
    order = np.argsort(np.append(sequence[kept], np.repeat(np.arange(len(chosen)), others[0])), kind="stable")
    columns = zip(hits[1:], others[1:], strict=True)
    return (counts + others[0], *(np.append(one[kept], other)[order] for one, other in columns))


def _gather(
    tensors: SiteTensors,
    parts: Array,
    pilot: Array,
    states: kernel.Layers,
    per_sequence: kernel.Sequences,
    by_position: TreeSum,
    hits: Array,
    listed: Array,
) -> SiteStatistics:
    bins, counts, offsets = sparse_histogram(states.histogram)
    return SiteStatistics(
        layers=np.asarray(tensors.layers, np.int64),
        pilot=pilot,
        bins=bins,
        counts=counts,
        offsets=offsets,
        positions=_positions(parts),
        position_counts=np.stack([(parts == part).sum(axis=0) for part in (EXCLUDED, REST)]).astype(np.int64),
        position_nodes=by_position.nodes,
        position_sums=by_position.sums(axis=2),
        hits=hits,
        listed=listed.astype(np.uint8),
        **{name: getattr(states, name)
           for name in ("sums", "low", "high", "positive", "negative", "positions_hit", "kurtosis")},
        **{name: np.ascontiguousarray(getattr(per_sequence, name).swapaxes(0, 1))
           for name in ("top", "absolute", "square", "median")},
    )  # fmt: skip


def _positions(parts: Array) -> Array:
    """How many positions of each part a sequence has, int64 (N, 2)."""
    return np.stack([(parts == part).sum(axis=1) for part in (EXCLUDED, REST)], axis=1).astype(np.int64)
