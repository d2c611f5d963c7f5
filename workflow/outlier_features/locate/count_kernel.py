"""The compiled part of counting: one pass that counts, one that counts again within a few bins of the histograms.

A slab is some sequences of a site, and of each of their layers the same range of cells, a cell being a (token, dim).
It is looked at in tiles, which lie in the cache while all their layers are counted: first, by vector code, how many
layers hit each cell; then the values of the few cells that enough layers hit. Values are compared by their bits
without the sign, which are in the order of abs(x) in every format, so nothing is widened or rounded.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from outlier_features.locate.quantiles import SLOTS

BINS = 1 << 16
OVER, LOCATIONS, OCCURRENCES = 0, 1, 2  # in Counts.totals

_TILE_VALUES = 1 << 17  # of all layers: half a megabyte
_TILE_CELLS = 64  # at least, or vector code would not pay
_CHUNK = 64
_COMPILED = {"nogil": True, "cache": True, "error_model": "numpy"}


class Counts(NamedTuple):
    """Running counts of one thread. Of kept occurrences, unless another thing is said; L is in the site's order."""

    totals: Any  # int64 (3,): values over the threshold, kept locations, kept occurrences
    dims: Any  # int64 (H,)
    positive: Any  # int64 (H,)
    negative: Any  # int64 (H,)
    layers: Any  # int64 (L,)
    first_layers: Any  # int64 (L,): kept locations by their first layer
    tokens: Any  # int64 (T,)
    extremes: Any  # int64 (2,): the smallest and largest abs(x), as bits
    magnitudes: Any  # int64 (32768,): abs(x) by its top 16 bits
    histogram: Any  # int64 (65536,): all values by their top 16 bits
    nonfinite: Any  # int64 (L,): values that are NaN or infinite


class Scratch(NamedTuple):
    """Working memory of one thread."""

    hits: Any  # as the raw values (cells of a tile,): how many layers hit each cell
    cells: Any  # int32 (the same): those that enough layers hit
    histogram: Any  # uint32 (65536,): of a slab
    keys: Any  # uint64 (values of a slab, or none): see `count_slab`
    raw: Any  # uint32 or uint16 (values of a slab,)


def new_counts(layers: int, tokens: int, dims: int) -> Counts:
    return Counts(
        totals=np.zeros(3, np.int64),
        dims=np.zeros(dims, np.int64),
        positive=np.zeros(dims, np.int64),
        negative=np.zeros(dims, np.int64),
        layers=np.zeros(layers, np.int64),
        first_layers=np.zeros(layers, np.int64),
        tokens=np.zeros(tokens, np.int64),
        extremes=np.array([BINS << 16, 0], np.int64),
        magnitudes=np.zeros(BINS // 2, np.int64),
        histogram=np.zeros(BINS, np.int64),
        nonfinite=np.zeros(layers, np.int64),
    )


def new_scratch(layers: int, cells: int, itemsize: int, values: int, keys: bool = False) -> Scratch:
    """For slabs of at most so many values, with keys or without."""
    tile = min(cells, max(_TILE_CELLS, _TILE_VALUES // layers))
    return Scratch(
        hits=np.zeros(tile, f"u{itemsize}"),
        cells=np.zeros(tile, np.int32),
        histogram=np.zeros(BINS, np.uint32),
        keys=np.empty(values if keys else 0, np.uint64),
        raw=np.empty(values, f"u{itemsize}"),
    )


@njit(**_COMPILED)
def _add_hits(x, mask, floor, hits):
    """Add to each of `hits` whether abs(x) reaches the floor; returns the largest abs(x), all as bits."""
    largest = x[0] & mask
    for i in range(x.size):
        magnitude = x[i] & mask
        hits[i] += magnitude >= floor
        largest = max(largest, magnitude)
    return largest


@njit(**_COMPILED)
def _add_to_histogram(x, shift, histogram):
    for i in range(x.size):
        histogram[np.int64(x[i]) >> shift] += 1


@njit(**_COMPILED)
def _count_from(x, mask, bound):
    count = 0
    for i in range(x.size):
        count += np.int64((x[i] & mask) >= bound)
    return count


@njit(**_COMPILED)
def _list_kept(hits, needed, cells):
    """List the cells that at least `needed` layers hit; returns their number and the sum of `hits`."""
    count, total = 0, 0
    for start in range(0, hits.size, _CHUNK):
        chunk = hits[start : start + _CHUNK]
        most, added = chunk[0], np.int64(0)
        for i in range(chunk.size):
            most = max(most, chunk[i])
            added += np.int64(chunk[i])
        total += added
        if np.int64(most) >= needed:
            for i in range(chunk.size):
                cells[count] = start + i
                count += np.int64(np.int64(chunk[i]) >= needed)
    return count, total


@njit(**_COMPILED)
def _random(index):
    """64 bits that depend only on the index (splitmix64), so that a sample does not depend on slabs or threads."""
    z = (np.uint64(index) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(**_COMPILED)
def count_slab(places, slab, bits, needed, histogram, limit, index, counts, scratch):
    """Count a slab; returns how many keys of kept occurrences it left in `scratch.keys`.

    places      int64 (L, B): cells of layer l and sequence n of the slab are at places[l, n] in scratch.raw
    slab        number of sequences, first cell and one past the last
    bits        of the type of the values: all but the sign; the smallest abs(x) that is over the threshold; infinity
    needed      how many layers must hit a location
    histogram   whether to take the histogram of all values
    limit       keys below it are left: 32 random bits over those of abs(x); 0: none
    index       of the first sequence, among all; random bits follow from it, the layer and the cell
    """
    raw = scratch.raw
    sequences, begin, end = slab
    layers, dims = places.shape[0], counts.dims.size
    cells = counts.tokens.size * dims
    mask, floor, infinity = bits[0], bits[1], bits[2]
    shift = 8 * (raw.itemsize - 2)
    kept = scratch.cells
    keys = 0
    for n in range(sequences):
        for start in range(begin, end, scratch.hits.size):
            size = min(scratch.hits.size, end - start)
            hits = scratch.hits[:size]
            hits[:] = 0
            for layer in range(layers):
                place = places[layer, n] + start - begin
                x = raw[place : place + size]
                if _add_hits(x, mask, floor, hits) >= infinity:
                    counts.nonfinite[layer] += _count_from(x, mask, infinity)
                if histogram:
                    _add_to_histogram(x, shift, scratch.histogram)
            found, over = _list_kept(hits, needed, kept)
            counts.totals[OVER] += over
            counts.totals[LOCATIONS] += found
            for k in range(found):
                cell = start + np.int64(kept[k])
                positive, negative, occurrences = 0, 0, 0
                for layer in range(layers):
                    value = raw[places[layer, n] + cell - begin]
                    magnitude = np.int64(value & mask)
                    if magnitude < np.int64(floor):
                        continue
                    if occurrences == 0:
                        counts.first_layers[layer] += 1
                    occurrences += 1
                    signed = np.int64(np.int64(value) != magnitude)
                    negative += signed & np.int64(magnitude != 0)
                    positive += (1 - signed) & np.int64(magnitude != 0)
                    counts.layers[layer] += 1
                    counts.magnitudes[magnitude >> shift] += 1
                    counts.extremes[0] = min(counts.extremes[0], magnitude)
                    counts.extremes[1] = max(counts.extremes[1], magnitude)
                    if limit:
                        key = _random(((index + n) * layers + layer) * cells + cell)
                        key = (key & np.uint64(0xFFFFFFFF00000000)) | np.uint64(magnitude)
                        if key < limit:
                            scratch.keys[keys] = key
                            keys += 1
                position, dim = cell // dims, cell % dims
                counts.dims[dim] += occurrences
                counts.positive[dim] += positive
                counts.negative[dim] += negative
                counts.tokens[position] += occurrences
                counts.totals[OCCURRENCES] += occurrences
    if histogram:
        for i in range(BINS):
            counts.histogram[i] += np.int64(scratch.histogram[i])
            scratch.histogram[i] = 0
    return keys


@njit(**_COMPILED)
def refine_slab(places, slab, bits, needed, bins, low, scratch):
    """Count by their low 16 bits the values of a float32 slab, and abs(x) of kept occurrences, that lie in some bins.

    bins    uint32 (2, 6): top 16 bits of all values, and of abs(x) of kept occurrences; unused ones are 65536 and last
    low     int64 (2, 6, 65536): the counts, for each bin by the low 16 bits

    See `count_slab` for the rest.
    """
    raw = scratch.raw
    sequences, begin, end = slab
    layers = places.shape[0]
    mask, floor = bits[0], bits[1]
    kept = scratch.cells
    for n in range(sequences):
        for start in range(begin, end, scratch.hits.size):
            size = min(scratch.hits.size, end - start)
            if bins[1, 0] < BINS:
                hits = scratch.hits[:size]
                hits[:] = 0
                for layer in range(layers):
                    place = places[layer, n] + start - begin
                    _add_hits(raw[place : place + size], mask, floor, hits)
                found, _ = _list_kept(hits, needed, kept)
                for k in range(found):
                    for layer in range(layers):
                        magnitude = raw[places[layer, n] + start - begin + np.int64(kept[k])] & mask
                        if magnitude >= floor:
                            for slot in range(SLOTS):
                                if magnitude >> np.uint32(16) == bins[1, slot]:
                                    low[1, slot, magnitude & np.uint32(0xFFFF)] += 1
            if bins[0, 0] < BINS:
                for layer in range(layers):
                    place = places[layer, n] + start - begin
                    _count_in_bins(raw[place : place + size], bins[0], low[0])


@njit(**_COMPILED)
def _count_in_bins(x, bins, low):
    """Few values are in a bin, so a chunk is first asked, by vector code, whether it has any."""
    whole = x.size - x.size % _CHUNK
    for k in range(SLOTS):
        if bins[k] == BINS:
            break
        first = np.uint32(bins[k] << np.uint32(16))
        for start in range(0, whole, _CHUNK):
            nearest = np.uint32(BINS)
            for i in range(_CHUNK):
                nearest = min(nearest, np.uint32(x[start + i] ^ first))
            if nearest < BINS:
                _count_low(x[start : start + _CHUNK], first, low[k])
        _count_low(x[whole:], first, low[k])


@njit(**_COMPILED)
def _count_low(x, first, low):
    for i in range(x.size):
        place = x[i] ^ first
        if place < BINS:
            low[place] += 1
