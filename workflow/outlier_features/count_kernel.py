"""The compiled part of counting: layers per location, tallies of the kept hits, and counts within a few histogram bins.

Hits come ordered by sequence, layer, token and dim, and those of a sequence come together.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

LOW_BITS = 1 << 16
SLOTS = 6  # three quantiles, each between two order statistics
LOCATIONS, OCCURRENCES = 0, 1  # in Tallies.totals

_SEEN = np.uint16(0xFFFF)  # a kept location whose first layer was counted
_CHUNK = 64


class Tallies(NamedTuple):
    """Running counts of the kept occurrences."""

    totals: Any  # int64 (2,): locations, occurrences
    positive: Any  # int64 (H,)
    negative: Any  # int64 (H,)
    dims: Any  # int64 (H,)
    layers: Any  # int64 (largest block index + 1,)
    first_layers: Any  # int64 (the same)
    tokens: Any  # int64 (T,)
    extremes: Any  # float32 (2,): smallest and largest abs(x)
    histogram: Any  # int64 (32768,): abs(x) by its top 16 bits
    values: Any  # float32 (capacity,): the first abs(x), or a sample of all


def new_tallies(layers: int, tokens: int, dims: int, capacity: int) -> Tallies:
    return Tallies(
        totals=np.zeros(2, np.int64),
        positive=np.zeros(dims, np.int64),
        negative=np.zeros(dims, np.int64),
        dims=np.zeros(dims, np.int64),
        layers=np.zeros(layers, np.int64),
        first_layers=np.zeros(layers, np.int64),
        tokens=np.zeros(tokens, np.int64),
        extremes=np.array([np.inf, 0], np.float32),
        histogram=np.zeros(LOW_BITS // 2, np.int64),
        values=np.empty(capacity, np.float32),
    )


@njit(nogil=True, cache=True, error_model="numpy")
def count_layers(sequence, token, dim, tokens, dims, layer_hits):
    """Count in `layer_hits` (uint16, zeros) how many layers hit each location (sequence - the first, token, dim)."""
    first = np.int64(sequence[0]) if sequence.size else 0
    for i in range(sequence.size):
        layer_hits[((np.int64(sequence[i]) - first) * tokens + np.int64(token[i])) * dims + np.int64(dim[i])] += 1


@njit(nogil=True, cache=True, error_model="numpy")
def _random(index):
    """64 bits that depend only on the index (splitmix64), so that a sample does not depend on blocks or threads."""
    z = (np.uint64(index) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(nogil=True, cache=True, error_model="numpy")
def tally_kept(sequence, layer, token, dim, value, needed, sample, layer_hits, tallies):
    """Add the hits at locations that at least `needed` layers hit.

    `layer_hits` comes from `count_layers` and is used up. Beyond the capacity of `tallies.values` further values are
    dropped or, with `sample`, replace earlier ones so that all are equally likely to stay.
    """
    tokens, dims, capacity = tallies.tokens.size, tallies.dims.size, tallies.values.size
    bits = np.abs(value).view(np.uint32)
    first = np.int64(sequence[0]) if sequence.size else 0
    for i in range(sequence.size):
        t, h = np.int64(token[i]), np.int64(dim[i])
        location = ((np.int64(sequence[i]) - first) * tokens + t) * dims + h
        if layer_hits[location] < needed:
            continue
        if layer_hits[location] != _SEEN:  # the first hit of a location is that of its first layer
            layer_hits[location] = _SEEN
            tallies.totals[LOCATIONS] += 1
            tallies.first_layers[layer[i]] += 1
        index = tallies.totals[OCCURRENCES]
        tallies.totals[OCCURRENCES] = index + 1
        tallies.dims[h] += 1
        tallies.positive[h] += np.int64(value[i] > 0)
        tallies.negative[h] += np.int64(value[i] < 0)
        tallies.layers[layer[i]] += 1
        tallies.tokens[t] += 1
        magnitude = abs(value[i])
        tallies.extremes[0] = min(tallies.extremes[0], magnitude)
        tallies.extremes[1] = max(tallies.extremes[1], magnitude)
        tallies.histogram[bits[i] >> np.uint32(16)] += 1
        if index < capacity:
            tallies.values[index] = magnitude
        elif sample:
            place = _random(index) % np.uint64(index + 1)
            if place < np.uint64(capacity):
                tallies.values[place] = magnitude


@njit(nogil=True, cache=True, error_model="numpy")
def select_kept(sequence, token, dim, value, needed, tokens, dims, layer_hits):
    """abs(x) of the hits at locations that at least `needed` layers hit, as bits (uint32)."""
    magnitudes = np.empty(value.size, np.float32)
    count = 0
    first = np.int64(sequence[0]) if sequence.size else 0
    for i in range(sequence.size):
        location = ((np.int64(sequence[i]) - first) * tokens + np.int64(token[i])) * dims + np.int64(dim[i])
        magnitudes[count] = abs(value[i])
        count += np.int64(layer_hits[location] >= needed)
    return magnitudes[:count].view(np.uint32)


@njit(nogil=True, cache=True, error_model="numpy")
def count_in_bins(bits, bins, counts):
    """Count the low 16 bits of those `bits` (uint32) whose top 16 bits are bins[k], in counts[k].

    `bins` is uint32 (6,), unused ones above 65535; `counts` is int64 (6, 65536). Few values are in a bin, so a chunk
    is first asked, by vector code, whether it has any.
    """
    shift = np.uint32(16)
    b0, b1, b2, b3, b4, b5 = bins[0], bins[1], bins[2], bins[3], bins[4], bins[5]
    for start in range(0, bits.size, _CHUNK):
        chunk = bits[start : start + _CHUNK]
        found = np.uint32(0)
        for i in range(chunk.size):
            top = chunk[i] >> shift
            found |= np.uint32((top == b0) | (top == b1) | (top == b2) | (top == b3) | (top == b4) | (top == b5))
        if found:
            for i in range(chunk.size):
                for k in range(SLOTS):
                    if chunk[i] >> shift == bins[k]:
                        counts[k, chunk[i] & np.uint32(0xFFFF)] += 1
