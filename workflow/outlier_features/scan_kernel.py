"""The compiled pass over one layer's activations: every statistic of a tile while it lies in the cache.

A sequence's positions are cut into runs of one part (excluded or rest; padding is skipped) and runs into tiles of
`TILE` positions. Per tile a vectorized loop takes power sums about a pilot mean, minimum and maximum of each dim; only
dims whose extremes cross a threshold are looked at again, value by value. Sums are taken in float32 within a tile and
added up in float64, so they do not depend on how sequences are grouped into chunks.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload

TILE = 16
COUNT_THRESHOLD = 6.0
BINS = 1 << 16

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2

# No `nnan` or `ninf`: a NaN must come through, to be reported.
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_LARGEST = np.float32(np.finfo(np.float32).max)


class Layer(NamedTuple):
    """Running statistics of one (site, layer); axis 0 of each array is the part (excluded, rest)."""

    sums: Any  # float64 (2, 4, H): sums of (x - pilot)**1 .. **4
    low: Any  # float32 (2, H): smallest x
    high: Any  # float32 (2, H): largest x
    positive: Any  # int64 (2, H): x >= 6
    negative: Any  # int64 (2, H): x <= -6
    positions_hit: Any  # int64 (2,): positions with some abs(x) >= 6
    histogram: Any  # uint32 (2, 65536): values by their top 16 bits
    kurtosis: Any  # float64 (2, 2): sum over positions of the kurtosis over dims, and how many positions have one
    nonfinite: Any  # int64 (2,): values that are NaN or infinite


class Sequences(NamedTuple):
    """Statistics of each sequence of a block. Axis 1 is the part; in `median` the population (all, without_first)."""

    top: Any  # float32 (B, 2, 3): the three largest abs(x)
    absolute: Any  # float64 (B, 2): sum of abs(x)
    square: Any  # float64 (B, 2): sum of x**2
    median: Any  # float64 (B, 2): median of abs(x)


class Scratch(NamedTuple):
    """Working memory of one thread."""

    tile: Any  # float32 (TILE * H,): a tile of 16-bit values, widened
    low: Any  # float32 (H,)
    high: Any  # float32 (H,)
    extremes: Any  # float32 (H,): largest abs(x) of each dim in the tile
    dims: Any  # int32 (H + 1,): dims that need a closer look
    magnitudes: Any  # float32 (T * H,): abs(x) of a sequence, rest first
    selected: Any  # uint32 (T * H,): candidates for the median


def new_layer(dims: int) -> Layer:
    return Layer(
        np.zeros((2, 4, dims)), np.full((2, dims), np.inf, np.float32), np.full((2, dims), -np.inf, np.float32),
        np.zeros((2, dims), np.int64), np.zeros((2, dims), np.int64), np.zeros(2, np.int64),
        np.zeros((2, BINS), np.uint32), np.zeros((2, 2)), np.zeros(2, np.int64),
    )  # fmt: skip


def new_sequences(count: int) -> Sequences:
    return Sequences(
        np.zeros((count, 2, 3), np.float32), np.zeros((count, 2)), np.zeros((count, 2)), np.full((count, 2), np.nan)
    )


def new_scratch(tokens: int, dims: int) -> Scratch:
    def vector() -> Any:
        return np.empty(dims, np.float32)

    return Scratch(
        tile=np.empty(TILE * dims, np.float32),
        low=vector(),
        high=vector(),
        extremes=vector(),
        dims=np.empty(dims + 1, np.int32),
        magnitudes=np.empty(tokens * dims, np.float32),
        selected=np.empty(tokens * dims, np.uint32),
    )


@njit(nogil=True, cache=True, error_model="numpy")
def widen_bfloat16(raw, out):
    bits = out.view(np.uint32)
    for i in range(raw.size):
        bits[i] = np.uint32(raw[i]) << np.uint32(16)


@njit(nogil=True, cache=True, error_model="numpy")
def widen_float16(raw, out):
    """The exponent bias is mended by a multiplication, which also makes subnormals right."""
    bits = out.view(np.uint32)
    for i in range(raw.size):
        magnitude = np.uint32(raw[i] & np.uint16(0x7FFF))
        bits[i] = magnitude << np.uint32(13)
        out[i] *= np.float32(2.0**112)
        special = np.uint32(0x7F800000) if magnitude >= np.uint32(0x7C00) else np.uint32(0)
        bits[i] |= special | (np.uint32(raw[i] & np.uint16(0x8000)) << np.uint32(16))


def _as_float32(raw, kind, scratch):
    raise NotImplementedError


@overload(_as_float32, inline="always")
def _as_float32_overload(raw, kind, scratch):
    if raw.dtype == types.uint32:
        return lambda raw, kind, scratch: raw.view(np.float32)

    def widen(raw, kind, scratch):
        out = scratch[: raw.size]
        if kind == BFLOAT16:
            widen_bfloat16(raw, out)
        else:
            widen_float16(raw, out)
        return out

    return widen


def _add_to_histogram(raw, histogram):
    raise NotImplementedError


@overload(_add_to_histogram, inline="always")
def _add_to_histogram_overload(raw, histogram):
    if raw.dtype == types.uint32:

        def by_top_bits(raw, histogram):
            for i in range(raw.size):
                histogram[raw[i] >> np.uint32(16)] += np.uint32(1)

        return by_top_bits

    def by_bits(raw, histogram):
        for i in range(raw.size):
            histogram[raw[i]] += np.uint32(1)

    return by_bits


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST)
def _sum_tile(x, rows, pilot, sums, layer_low, layer_high, scratch):
    """Add the power sums of a tile x (rows * H,) to `sums` (4, H), its extremes to the layer's and to the scratch.

    Eight rows at a time stay in registers. Returns whether a sum of squares is NaN or infinite.
    """
    dims = pilot.size
    low, high = scratch.low, scratch.high
    s1, s2, s3, s4 = sums[0], sums[1], sums[2], sums[3]
    for h in range(dims):
        low[h] = high[h] = x[h]
    infinite = np.uint32(0)
    row = 0
    while row + 8 <= rows:
        x0, x1, x2, x3 = x[row * dims :], x[(row + 1) * dims :], x[(row + 2) * dims :], x[(row + 3) * dims :]
        x4, x5, x6, x7 = x[(row + 4) * dims :], x[(row + 5) * dims :], x[(row + 6) * dims :], x[(row + 7) * dims :]
        for h in range(dims):
            a, b, c, d, e, f, g, k = x0[h], x1[h], x2[h], x3[h], x4[h], x5[h], x6[h], x7[h]
            low[h] = min(low[h], min(min(min(a, b), min(c, d)), min(min(e, f), min(g, k))))
            high[h] = max(high[h], max(max(max(a, b), max(c, d)), max(max(e, f), max(g, k))))
            p = pilot[h]
            a, b, c, d, e, f, g, k = a - p, b - p, c - p, d - p, e - p, f - p, g - p, k - p
            a2, b2, c2, d2, e2, f2, g2, k2 = a * a, b * b, c * c, d * d, e * e, f * f, g * g, k * k
            second = ((a2 + b2) + (c2 + d2)) + ((e2 + f2) + (g2 + k2))
            s1[h] += np.float64(((a + b) + (c + d)) + ((e + f) + (g + k)))
            s2[h] += np.float64(second)
            s3[h] += np.float64(((a2 * a + b2 * b) + (c2 * c + d2 * d)) + ((e2 * e + f2 * f) + (g2 * g + k2 * k)))
            s4[h] += np.float64(
                ((a2 * a2 + b2 * b2) + (c2 * c2 + d2 * d2)) + ((e2 * e2 + f2 * f2) + (g2 * g2 + k2 * k2))
            )
            infinite |= np.uint32(not (second <= _LARGEST))
        row += 8
    while row < rows:
        xa = x[row * dims : (row + 1) * dims]
        for h in range(dims):
            a = xa[h]
            low[h] = min(low[h], a)
            high[h] = max(high[h], a)
            a = a - pilot[h]
            a2 = a * a
            s1[h] += np.float64(a)
            s2[h] += np.float64(a2)
            s3[h] += np.float64(a2 * a)
            s4[h] += np.float64(a2 * a2)
            infinite |= np.uint32(not (a2 <= _LARGEST))
        row += 1
    for h in range(dims):
        layer_low[h] = min(layer_low[h], low[h])
        layer_high[h] = max(layer_high[h], high[h])
    return infinite != 0


@njit(nogil=True, cache=True, error_model="numpy")
def _count_nonfinite(x):
    bits = x.view(np.uint32)
    count = 0
    for i in range(bits.size):
        count += np.int64((bits[i] & np.uint32(0x7F800000)) == np.uint32(0x7F800000))
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def _insert_top(top, magnitude):
    k = 2
    while k > 0 and top[k - 1] < magnitude:
        top[k] = top[k - 1]
        k -= 1
    top[k] = magnitude


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST)
def _describe_rows(x, rows, dims, layer_kurtosis, magnitudes):
    """Sums of abs(x) and x**2 of a tile; adds each row's kurtosis over dims; writes abs(x) to `magnitudes`."""
    absolute = 0.0
    square = 0.0
    for row in range(rows):
        values = x[row * dims : (row + 1) * dims]
        out = magnitudes[row * dims : (row + 1) * dims]
        total = 0.0
        total_abs = 0.0
        for h in range(dims):
            magnitude = abs(values[h])
            out[h] = magnitude
            total += np.float64(values[h])
            total_abs += np.float64(magnitude)
        mean = total / dims
        second = 0.0
        fourth = 0.0
        for h in range(dims):
            d2 = (np.float64(values[h]) - mean) ** 2
            second += d2
            fourth += d2 * d2
        absolute += total_abs
        square += second + mean * total
        if second > 0.0:
            layer_kurtosis[0] += dims * fourth / (second * second)
            layer_kurtosis[1] += 1.0
    return absolute, square


@njit(nogil=True, cache=True, error_model="numpy")
def _rank_bits(bits, count, rank, spare):
    """The value of the given rank (from 0) among the first `count` of `bits` (uint32), by radix selection."""
    counts = np.zeros(2048, np.uint32)
    for i in range(count):
        counts[bits[i] >> np.uint32(20)] += np.uint32(1)
    digit = 0
    while rank >= counts[digit]:
        rank -= np.int64(counts[digit])
        digit += 1
    kept = 0
    for i in range(count):
        spare[kept] = bits[i]
        kept += np.int64((bits[i] >> np.uint32(20)) == np.uint32(digit))
    for shift, width in ((9, 2048), (0, 512)):
        counts[:] = 0
        for i in range(kept):
            counts[(spare[i] >> np.uint32(shift)) & np.uint32(width - 1)] += np.uint32(1)
        digit = 0
        while rank >= counts[digit]:
            rank -= np.int64(counts[digit])
            digit += 1
        remaining = 0
        for i in range(kept):
            value = spare[i]
            spare[remaining] = value
            remaining += np.int64(((value >> np.uint32(shift)) & np.uint32(width - 1)) == np.uint32(digit))
        kept = remaining
    return spare[0]


@njit(nogil=True, cache=True, error_model="numpy")
def _median(magnitudes, count, spare):
    """Median of the first `count` non-negative float32, the mean of the two middle values where count is even."""
    if count == 0:
        return np.nan
    bits = magnitudes.view(np.uint32)  # of non-negative floats: in the same order as the floats
    lower = _rank_bits(bits, count, (count - 1) // 2, spare)
    upper = lower
    if count % 2 == 0:
        not_above = 0
        upper = np.uint32(0xFFFFFFFF)
        for i in range(count):
            not_above += np.int64(bits[i] <= lower)
            upper = min(upper, bits[i] if bits[i] > lower else np.uint32(0xFFFFFFFF))
        if not_above > count // 2:
            upper = lower
    pair = np.empty(2, np.uint32)
    pair[0], pair[1] = lower, upper
    values = pair.view(np.float32)
    return (np.float64(values[0]) + np.float64(values[1])) / 2


@njit(nogil=True, cache=True, error_model="numpy")
def _rank_bound(extremes, top):
    """A value that the three largest abs(x) reach: the third of `top` and of the dims' extremes together."""
    largest, middle, third = top[0], top[1], top[2]
    for h in range(extremes.size):
        extreme = extremes[h]
        if extreme > third:
            if extreme > largest:
                largest, middle, third = extreme, largest, middle
            elif extreme > middle:
                middle, third = extreme, middle
            else:
                third = extreme
    return third


@njit(nogil=True, cache=True, error_model="numpy")
def _crossing_dims(floor, top, scratch):
    """List in scratch.dims the dims whose extremes in the tile reach 6, their floor, or a place among the top three."""
    extremes, found = scratch.extremes, scratch.dims
    threshold = np.float32(COUNT_THRESHOLD)
    third = top[2]
    higher = np.int32(0)
    for h in range(floor.size):
        extremes[h] = max(scratch.high[h], -scratch.low[h])
        higher |= np.int32(extremes[h] > third)
    bound = _rank_bound(extremes, top) if higher else np.float32(np.inf)
    count = 0
    for block in range(0, floor.size, 16):
        stop = min(block + 16, floor.size)
        crossing = np.int32(0)
        for h in range(block, stop):
            crossing |= np.int32((extremes[h] >= floor[h]) | (extremes[h] >= threshold) | (extremes[h] >= bound))
        if crossing != 0:
            for h in range(block, stop):
                found[count] = h
                count += np.int64((extremes[h] >= floor[h]) | (extremes[h] >= threshold) | (extremes[h] >= bound))
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def _scan_rare(x, rows, part, layer, top, floor, scratch, crossing, first_token, token, dim, value, count):
    """Look at every value of the crossing dims: count it, keep it if a hit, rank it. Returns the count of hits."""
    dims = floor.size
    threshold = np.float32(COUNT_THRESHOLD)
    positive, negative = layer.positive[part], layer.negative[part]
    third = top[2]
    for row in range(rows):
        reached = False
        for j in range(crossing):
            h = np.int64(scratch.dims[j])
            v = x[row * dims + h]
            magnitude = abs(v)
            positive[h] += np.int64(v >= threshold)
            negative[h] += np.int64(v <= -threshold)
            reached |= magnitude >= threshold
            token[count] = first_token + row
            dim[count] = h
            value[count] = v
            count += np.int64(magnitude >= floor[h])
            if magnitude > third:
                _insert_top(top, magnitude)
                third = top[2]
        layer.positions_hit[part] += np.int64(reached)
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def _room_for(more, values, count):
    """`values`, grown where fewer than `more` entries are free."""
    if count + more <= values.size:
        return values
    grown = np.empty(2 * values.size + more, values.dtype)
    grown[:count] = values[:count]
    return grown


@njit(nogil=True, cache=True, error_model="numpy")
def scan_layer(raw, kind, start, stride, runs, run_starts, pilot, floor, profile, histogram, layer, sequences, scratch):
    """Scan one layer of a block of sequences and return its hits.

    raw        uint32 (float32 bits) or uint16 (`kind` says bfloat16 or float16), flat; sequence b lies at
               start + b * stride as (T, H)
    runs       int64 (R, 3): first position, one past the last, part; sequence b has runs run_starts[b]:run_starts[b+1]
    pilot      float32 (H,); floor float32 (H,): abs(x) at or above it is a hit
    profile    whether to take medians, sums of abs(x) and x**2, and kurtosis per position
    histogram  whether to take the histogram

    `layer` and `sequences` are updated. Returns the number of hits of each sequence (int64), and of each hit the token
    and dim (uint32) and the value (float32), ordered by sequence, token, dim.
    """
    dims = pilot.size
    token, dim, value = np.empty(4096, np.uint32), np.empty(4096, np.uint32), np.empty(4096, np.float32)
    hits_of = np.zeros(run_starts.size - 1, np.int64)
    count = 0
    for b in range(run_starts.size - 1):
        base, count_before = start + b * stride, count
        rest = 0
        for r in range(run_starts[b], run_starts[b + 1]):
            if runs[r, 2] == 1:
                rest += runs[r, 1] - runs[r, 0]
        filled_rest, filled_all = 0, rest * dims  # abs(x) of the rest goes first, so both populations are a prefix
        for r in range(run_starts[b], run_starts[b + 1]):
            part = runs[r, 2]
            top = sequences.top[b, part]
            for t in range(runs[r, 0], runs[r, 1], TILE):
                rows = min(TILE, runs[r, 1] - t)
                size = rows * dims
                bits = raw[base + t * dims : base + t * dims + size]
                x = _as_float32(bits, kind, scratch.tile)
                if _sum_tile(x, rows, pilot, layer.sums[part], layer.low[part], layer.high[part], scratch):
                    layer.nonfinite[part] += _count_nonfinite(x)
                crossing = _crossing_dims(floor, top, scratch)
                if crossing > 0:
                    more = rows * crossing + 1
                    token, dim, value = (
                        _room_for(more, token, count),
                        _room_for(more, dim, count),
                        _room_for(more, value, count),
                    )
                    count = _scan_rare(x, rows, part, layer, top, floor, scratch, crossing, t, token, dim, value, count)
                if histogram:
                    _add_to_histogram(bits, layer.histogram[part])
                if profile:
                    filled = filled_rest if part == 1 else filled_all
                    absolute, square = _describe_rows(
                        x, rows, dims, layer.kurtosis[part], scratch.magnitudes[filled : filled + size]
                    )
                    sequences.absolute[b, part] += absolute
                    sequences.square[b, part] += square
                    if part == 1:
                        filled_rest += size
                    else:
                        filled_all += size
        hits_of[b] = count - count_before
        if profile:
            sequences.median[b, 0] = _median(scratch.magnitudes, filled_all, scratch.selected)
            sequences.median[b, 1] = _median(scratch.magnitudes, filled_rest, scratch.selected)
    return hits_of, token[:count].copy(), dim[:count].copy(), value[:count].copy()
