"""The compiled pass over activations: every statistic of a tile while it lies in the cache.

A sequence's positions are cut into runs of one part (excluded or rest; padding is skipped) and runs into tiles of
`TILE` positions. Per tile a vectorized loop takes power sums about a pilot mean, minimum and maximum of each dim; only
dims whose extremes cross a threshold are looked at again, value by value. Sums are taken in float32 within a tile and
added up in float64, so they do not depend on how sequences are grouped into chunks. Every sum has one order, written
here, and nothing is compiled with fastmath: machine code that reorders sums is not the same code in every process (two
that fill numba's cache at once inline differently), on every CPU, in every version of LLVM.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from outlier_features.populations import REST

TILE = 16
COUNT_THRESHOLD = 6.0
BINS = 1 << 16

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2

_LANES = 16  # sums over a row that go on side by side
_STEP = 4 * _LANES  # values of a row that are added together
_FEW = 16  # candidates for the median that are put in order
_GROUP = 64  # values among which candidates are looked for side by side
_MAGNITUDE = np.uint32(0x7FFFFFFF)  # the bits of a float32 without its sign, which are in the order of abs(x)
_LARGEST = np.float32(np.finfo(np.float32).max)


class Layers(NamedTuple):
    """Running statistics of a site; axis 0 of each array is the layer, axis 1 the part (excluded, rest)."""

    sums: Any  # float64 (L, 2, 4, H): sums of (x - pilot)**1 .. **4
    low: Any  # float32 (L, 2, H): smallest x
    high: Any  # float32 (L, 2, H): largest x
    positive: Any  # int64 (L, 2, H): x >= 6
    negative: Any  # int64 (L, 2, H): x <= -6
    positions_hit: Any  # int64 (L, 2): positions with some abs(x) >= 6
    histogram: Any  # uint32 (L, 2, 65536): values by their top 16 bits
    kurtosis: Any  # float64 (L, 2, 2): sum over positions of the kurtosis over dims, and how many positions have one
    nonfinite: Any  # int64 (L, 2): values that are NaN or infinite


class Sequences(NamedTuple):
    """Statistics of each sequence and layer. Axis 2 is the part; in `median` the population (all, without_first)."""

    top: Any  # float32 (N, L, 2, 3): the three largest abs(x)
    absolute: Any  # float64 (N, L, 2): sum of abs(x)
    square: Any  # float64 (N, L, 2): sum of x**2
    median: Any  # float64 (N, L, 2): median of abs(x)


class Scratch(NamedTuple):
    """Working memory of one thread."""

    tile: Any  # float32 (TILE * H,): a tile
    low: Any  # float32 (H,)
    high: Any  # float32 (H,)
    extremes: Any  # float32 (H, rounded up to a multiple of 16): largest abs(x) of each dim in the tile
    flags: Any  # uint32 (the same): whether a dim needs a closer look
    dims: Any  # int32 (H + 2,): those dims
    values: Any  # float32 (T * H,): a sequence, rest first
    candidates: Any  # uint32 (_FEW + 1,): values near the median
    lanes: Any  # float64 (2 * _LANES,): two sums over a row
    totals: Any  # float64 (TILE,): sums of the rows of a tile


def new_layers(count: int, dims: int) -> Layers:
    shape = (count, 2, dims)
    return Layers(
        sums=np.zeros((count, 2, 4, dims)),
        low=np.full(shape, np.inf, np.float32),
        high=np.full(shape, -np.inf, np.float32),
        positive=np.zeros(shape, np.int64),
        negative=np.zeros(shape, np.int64),
        positions_hit=np.zeros((count, 2), np.int64),
        histogram=np.zeros((count, 2, BINS), np.uint32),
        kurtosis=np.zeros((count, 2, 2)),
        nonfinite=np.zeros((count, 2), np.int64),
    )


def new_sequences(count: int, layers: int) -> Sequences:
    shape = (count, layers, 2)
    return Sequences(
        top=np.zeros((*shape, 3), np.float32),
        absolute=np.zeros(shape),
        square=np.zeros(shape),
        median=np.full(shape, np.nan),
    )


def new_scratch(tokens: int, dims: int) -> Scratch:
    padded = -(-dims // 16) * 16
    return Scratch(
        tile=np.empty(TILE * dims, np.float32),
        low=np.empty(dims, np.float32),
        high=np.empty(dims, np.float32),
        extremes=np.zeros(padded, np.float32),
        flags=np.zeros(padded, np.uint32),
        dims=np.empty(dims + 2, np.int32),
        values=np.empty(tokens * dims, np.float32),
        candidates=np.empty(_FEW + 1, np.uint32),
        lanes=np.empty(2 * _LANES),
        totals=np.empty(TILE),
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


def copy_float32(raw, kind, out):
    raise NotImplementedError


@overload(copy_float32, inline="always")
def copy_float32_overload(raw, kind, out):
    if raw.dtype == types.uint32:

        def copy(raw, kind, out):
            bits = out.view(np.uint32)
            for i in range(raw.size):
                bits[i] = raw[i]

        return copy

    def widen(raw, kind, out):
        if kind == BFLOAT16:
            widen_bfloat16(raw, out)
        else:
            widen_float16(raw, out)

    return widen


def as_float32(raw, kind, scratch):
    raise NotImplementedError


@overload(as_float32, inline="always")
def as_float32_overload(raw, kind, scratch):
    if raw.dtype == types.uint32:
        return lambda raw, kind, scratch: raw.view(np.float32)

    def widen(raw, kind, scratch):
        out = scratch[: raw.size]
        copy_float32(raw, kind, out)
        return out

    return widen


@intrinsic
def _fetch(context, array, index):
    """Have the processor read the cache line of array[index], which may lie past the end, while it does other work."""

    def generate(target, builder, signature, arguments):
        own = target.make_array(signature.args[0])(target, builder, arguments[0])
        element = cgutils.get_item_pointer(target, builder, signature.args[0], own, [arguments[1]], wraparound=False)
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        of = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, of, "llvm.prefetch.p0i8")
        read, nearest, data = (ir.Constant(number, n) for n in (0, 3, 1))
        builder.call(prefetch, [builder.bitcast(element, byte), read, nearest, data])
        return target.get_dummy_value()

    return types.void(array, index), generate


def _add_to_histogram(raw, following, histogram):
    raise NotImplementedError


@overload(_add_to_histogram, inline="always")
def _add_to_histogram_overload(raw, following, histogram):
    """Increments wait for one another, not for memory: meanwhile as much of `following` comes into the cache."""
    if raw.dtype == types.uint32:

        def by_top_bits(raw, following, histogram):
            pairs = raw[: raw.size // 2 * 2].view(np.uint64)  # two values a load
            whole = pairs.size // 8 * 8  # that many to a cache line
            for begin in range(0, whole, 8):
                _fetch(following, 2 * begin)
                for i in range(begin, begin + 8):
                    histogram[(pairs[i] >> np.uint64(16)) & np.uint64(0xFFFF)] += np.uint32(1)
                    histogram[pairs[i] >> np.uint64(48)] += np.uint32(1)
            for i in range(2 * whole, raw.size):
                histogram[raw[i] >> np.uint32(16)] += np.uint32(1)

        return by_top_bits

    def by_bits(raw, following, histogram):
        whole = raw.size // 32 * 32
        for begin in range(0, whole, 32):
            _fetch(following, begin)
            for i in range(begin, begin + 32):
                histogram[raw[i]] += np.uint32(1)
        for i in range(whole, raw.size):
            histogram[raw[i]] += np.uint32(1)

    return by_bits


@njit(nogil=True, cache=True, error_model="numpy")
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


@njit(nogil=True, cache=True, error_model="numpy")
def _folded(lanes, first):
    """The sum of the 16 lanes from `first` on: lanes at half the distance are added to them each time."""
    for half in (8, 4, 2, 1):
        for j in range(half):
            lanes[first + j] += lanes[first + half + j]
    return lanes[first]


@njit(nogil=True, cache=True, error_model="numpy")
def _sum_row(row, lanes):
    """Sums of x in `lanes` (2 * _LANES,) and, behind them, of abs(x): each lane takes every 16th value in turn.

    Lanes are read and written once in a step. That they lie in one flat array, without slices, is a third of the time.
    """
    for j in range(2 * _LANES):
        lanes[j] = 0.0
    whole = row.size // _STEP * _STEP
    for begin in range(0, whole, _STEP):
        for j in range(_LANES):
            one, two = lanes[j], lanes[_LANES + j]
            for k in range(_STEP // _LANES):
                x = np.float64(row[begin + j + k * _LANES])
                one += x
                two += abs(x)
            lanes[j] = one
            lanes[_LANES + j] = two
    for i in range(whole, row.size):
        x = np.float64(row[i])
        lanes[i % _LANES] += x
        lanes[_LANES + i % _LANES] += abs(x)


@njit(nogil=True, cache=True, error_model="numpy")
def _sum_powers(row, mean, lanes):
    """Sums of (x - mean)**2 and (x - mean)**4 of a row, as `_sum_row` those of x and abs(x)."""
    for j in range(2 * _LANES):
        lanes[j] = 0.0
    whole = row.size // _STEP * _STEP
    for begin in range(0, whole, _STEP):
        for j in range(_LANES):
            one, two = lanes[j], lanes[_LANES + j]
            for k in range(_STEP // _LANES):
                x = row[begin + j + k * _LANES] - mean
                square = x * x
                one += square
                two += square * square
            lanes[j] = one
            lanes[_LANES + j] = two
    for i in range(whole, row.size):
        x = row[i] - mean
        square = x * x
        lanes[i % _LANES] += square
        lanes[_LANES + i % _LANES] += square * square


@njit(nogil=True, cache=True, error_model="numpy")
def _describe_rows(x, rows, dims, layer_kurtosis, of_rows, totals, lanes):
    """Sums of abs(x) and x**2 of a tile; adds each row's kurtosis over dims, and puts its sums of x and x**2 in
    `of_rows` (rows, 2).

    The second loop needs all of a row's first one: rows side by side do not wait.
    """
    absolute = 0.0
    square = 0.0
    for row in range(rows):
        _sum_row(x[row * dims : (row + 1) * dims], lanes)
        totals[row] = _folded(lanes, 0)
        absolute += _folded(lanes, _LANES)
    for row in range(rows):
        mean = totals[row] / dims
        _sum_powers(x[row * dims : (row + 1) * dims], mean, lanes)
        squares = _folded(lanes, 0)
        fourths = _folded(lanes, _LANES)
        of_rows[row, 0] = totals[row]
        of_rows[row, 1] = squares + mean * totals[row]
        square += of_rows[row, 1]
        if squares > 0.0:
            layer_kurtosis[0] += dims * fourths / (squares * squares)
            layer_kurtosis[1] += 1.0
    return absolute, square


@njit(nogil=True, cache=True, error_model="numpy")
def _count_below(bits, first, second):
    """How many of `bits` (uint32) are, without their signs, below each of two bounds."""
    one, two = np.uint32(0), np.uint32(0)
    for i in range(bits.size):
        magnitude = np.uint32(bits[i] & _MAGNITUDE)
        one = np.uint32(one + np.uint32(magnitude < first))
        two = np.uint32(two + np.uint32(magnitude < second))
    return np.int64(one), np.int64(two)


@njit(nogil=True, cache=True, error_model="numpy")
def _smallest_from(bits, bound):
    """The smallest of `bits` (uint32), without their signs, at or above a bound."""
    smallest = np.uint32(0xFFFFFFFF)
    for i in range(bits.size):
        magnitude = np.uint32(bits[i] & _MAGNITUDE)
        smallest = min(smallest, magnitude if magnitude >= bound else np.uint32(0xFFFFFFFF))
    return smallest


@njit(nogil=True, cache=True, error_model="numpy")
def _sorted_between(bits, low, high, found):
    """Put those of `bits` (uint32) that are, without their signs, from low to below high into `found`, ascending."""
    span = np.uint32(high - low)
    count = 0
    for begin in range(0, bits.size, _GROUP):
        some = bits[begin : min(begin + _GROUP, bits.size)]
        hit = np.uint32(0)
        for j in range(some.size):
            hit = max(hit, np.uint32(np.uint32(np.uint32(some[j] & _MAGNITUDE) - low) < span))
        if hit:
            for j in range(some.size):
                magnitude = np.uint32(some[j] & _MAGNITUDE)
                found[count] = magnitude
                count += np.int64(np.uint32(magnitude - low) < span)
    for i in range(1, count):
        one, k = found[i], i
        while k > 0 and found[k - 1] > one:
            found[k] = found[k - 1]
            k -= 1
        found[k] = one


@njit(nogil=True, cache=True, error_model="numpy")
def _median(values, guess, candidates):
    """Median of abs(x), the mean of the two middle values where their number is even; and the bits of the lower one.

    guess        the bits of a number near it; a bad one costs time
    candidates   uint32 (_FEW + 1,): working memory

    Counting the values below two bounds costs little, as it is done side by side. So bounds are laid about the guess,
    then about where the median would lie were values spread evenly between the bounds; where this does not close in,
    they are halved.
    """
    count = values.size
    if count == 0:
        return np.nan, guess
    bits = values.view(np.uint32)
    rank = (count - 1) // 2
    low, high = np.int64(0), np.int64(0x80000000)  # the median is from low to below high
    below, until = 0, count  # how many values are below each
    step = np.int64(1 << 17)  # 1.6 to 3 percent
    first, second = guess - step, guess + step
    rounds = 0
    while until - below > _FEW and high - low > 1:
        if first <= low or second >= high or first > second:
            first = second = (low + high) // 2
        one, two = _count_below(bits, np.uint32(first), np.uint32(second))
        if rank < one:
            high, until = first, one
        elif rank < two:
            low, below, high, until = first, one, second, two
        else:
            low, below = second, two
        step *= 8
        rounds += 1
        if low == 0:
            first = second = high - step
        elif high == 0x80000000:
            first = second = low + step
        elif rounds % 4 == 0:
            first = second = low  # halve
        else:
            share = (high - low) / (until - below)
            middle = low + np.int64((rank - below) * share)
            reach = np.int64(share * (_FEW // 3)) + 1
            first, second = max(middle - reach, low + 1), min(middle + reach + 1, high - 1)
    pair = np.empty(2, np.uint32)
    pair[:] = np.uint32(low)
    if high - low > 1:
        _sorted_between(bits, np.uint32(low), np.uint32(high), candidates)
        pair[0], pair[1] = candidates[rank - below], candidates[min(rank + 1, until - 1) - below]
    if rank + 1 == until and count > until:
        pair[1] = _smallest_from(bits, np.uint32(high))
    if count % 2:
        pair[1] = pair[0]
    middles = pair.view(np.float32)
    return (np.float64(middles[0]) + np.float64(middles[1])) / 2, np.int64(pair[0])


@njit(nogil=True, cache=True, error_model="numpy")
def _rank_bound(extremes, top):
    """A value that the three largest abs(x) reach: the third of `top` and of the extremes of 16 groups of dims."""
    groups = np.zeros(16, np.float32)
    for block in range(0, extremes.size, 16):
        for j in range(16):
            groups[j] = max(groups[j], extremes[block + j])
    largest, middle, third = top[0], top[1], top[2]
    for j in range(16):
        extreme = groups[j]
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
    extremes, flags, found = scratch.extremes, scratch.flags, scratch.dims
    low, high = scratch.low, scratch.high
    threshold = np.float32(COUNT_THRESHOLD)
    third = top[2]
    crossing = np.uint32(0)
    higher = np.uint32(0)
    for h in range(floor.size):
        extreme = max(high[h], -low[h])
        extremes[h] = extreme
        flags[h] = np.uint32((extreme >= floor[h]) | (extreme >= threshold))
        crossing |= flags[h]
        higher |= np.uint32(extreme > third)
    if higher:
        bound = _rank_bound(extremes, top)
        for h in range(floor.size):
            flags[h] |= np.uint32(extremes[h] >= bound)
    count = 0
    if crossing | higher:
        pairs = flags.view(np.uint64)
        for i in range(pairs.size):
            if pairs[i] != 0:
                found[count] = 2 * i
                count += np.int64(flags[2 * i])
                found[count] = 2 * i + 1
                count += np.int64(flags[2 * i + 1])
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def _scan_rare(x, rows, positive, negative, top, floor, scratch, crossing, first_token, token, dim, value, count):
    """Look at every value of the crossing dims: count it, keep it if a hit, rank it.

    Returns the count of hits, and how many rows reach 6.
    """
    dims = floor.size
    threshold = np.float32(COUNT_THRESHOLD)
    third = top[2]
    rows_hit = 0
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
        rows_hit += np.int64(reached)
    return count, rows_hit


@njit(nogil=True, cache=True, error_model="numpy")
def _count_tile(x, rows, positive, negative, floor):
    """Count every value of a tile, as `_scan_rare` those of its dims. Returns the hits, and how many rows reach 6."""
    threshold = np.float32(COUNT_THRESHOLD)
    dims = floor.size
    hits, rows_hit = 0, 0
    for row in range(rows):
        values = x[row * dims : (row + 1) * dims]
        reached = np.int64(0)
        for h in range(dims):
            above, below = np.int64(values[h] >= threshold), np.int64(values[h] <= -threshold)
            positive[h] += above
            negative[h] += below
            reached |= above | below
            hits += np.int64(abs(values[h]) >= floor[h])
        rows_hit += reached
    return hits, rows_hit


@njit(nogil=True, cache=True, error_model="numpy")
def _list_tile(x, rows, floor, first_token, token, dim, value, count):
    """Append the hits of a tile to the lists, which have room for them and one; returns their new count."""
    dims = floor.size
    for row in range(rows):
        values = x[row * dims : (row + 1) * dims]
        for h in range(dims):
            token[count] = first_token + row
            dim[count] = h
            value[count] = values[h]
            count += np.int64(abs(values[h]) >= floor[h])
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def _raise_top(x, rows, top, extremes, dims):
    """Put the largest abs(x) of a tile among the top three."""
    bound = _rank_bound(extremes, top)
    for h in range(dims):
        if extremes[h] >= bound:
            for row in range(rows):
                magnitude = abs(x[row * dims + h])
                if magnitude > top[2]:
                    _insert_top(top, magnitude)


@njit(nogil=True, cache=True, error_model="numpy")
def _room_for(more, values, count):
    """`values`, grown where fewer than `more` entries are free."""
    if count + more <= values.size:
        return values
    grown = np.empty(2 * values.size + more, values.dtype)
    grown[:count] = values[:count]
    return grown


@njit(nogil=True, cache=True, error_model="numpy")
def scan_layer(
    raw, places, kind, layer, runs, run_starts, pilot, floor, most, profile, histogram, layers, sequences, at, scratch
):
    """Scan one layer of a block of sequences and return its hits.

    raw         uint32 (float32 bits) or uint16 (`kind` says bfloat16 or float16), flat
    places      int64 (B,): sequence b lies in `raw` from places[b] on, as (T, H)
    runs        int64 (R, 3): first position, one past the last, part; those of sequence b are
                runs[run_starts[b]:run_starts[b + 1]]
    pilot       float32 (H,)
    floor       float32 (H,): abs(x) at or above it is a hit
    most        int64 (B,): of a sequence with more hits in this layer, not all of them are listed
    profile     whether to take medians, sums of abs(x) and x**2, and kurtosis per position
    histogram   whether to take the histogram
    at          float64 (B, 2, T, 2), zeros: with `profile` it gets each position's sums of x and x**2, at its part

    `layers` and `sequences` are updated at index `layer`. Returns the number of hits of each sequence and of those that
    are listed, int64 (B,), and of each of these the token and dim (uint32) and the value (float32), ordered by
    sequence, token, dim.
    """
    token, dim, value = np.empty(4096, np.uint32), np.empty(4096, np.uint32), np.empty(4096, np.float32)
    hits_of, listed_of = np.zeros(run_starts.size - 1, np.int64), np.zeros(run_starts.size - 1, np.int64)
    dims = pilot.size
    count = 0
    guess = np.int64(0x3F800000)  # 1.0; then the median of the sequence before
    for b in range(run_starts.size - 1):
        base, count_before = places[b], count
        rest = 0
        for r in range(run_starts[b], run_starts[b + 1]):
            if runs[r, 2] == REST:
                rest += runs[r, 1] - runs[r, 0]
        filled_rest, filled_all = 0, rest * dims  # the rest goes first, so both populations are a prefix
        for r in range(run_starts[b], run_starts[b + 1]):
            part = runs[r, 2]
            top = sequences.top[b, layer, part]
            sums, low, high = layers.sums[layer, part], layers.low[layer, part], layers.high[layer, part]
            positive, negative = layers.positive[layer, part], layers.negative[layer, part]
            for t in range(runs[r, 0], runs[r, 1], TILE):
                rows = min(TILE, runs[r, 1] - t)
                size = rows * dims
                bits = raw[base + t * dims : base + t * dims + size]
                filled = filled_rest if part == REST else filled_all
                # Even float32 is copied: rows read side by side wait for memory longer than one after the other.
                x = scratch.values[filled : filled + size] if profile else scratch.tile[:size]
                copy_float32(bits, kind, x)
                if _sum_tile(x, rows, pilot, sums, low, high, scratch):
                    layers.nonfinite[layer, part] += _count_nonfinite(x)
                crossing = _crossing_dims(floor, top, scratch)
                hits = 0  # of the tile, that are not listed
                if crossing > dims // 8:
                    hits, rows_hit = _count_tile(x, rows, positive, negative, floor)
                    layers.positions_hit[layer, part] += rows_hit
                    _raise_top(x, rows, top, scratch.extremes, dims)
                    if count - count_before + hits <= most[b]:
                        token = _room_for(hits + 1, token, count)
                        dim = _room_for(hits + 1, dim, count)
                        value = _room_for(hits + 1, value, count)
                        count = _list_tile(x, rows, floor, t, token, dim, value, count)
                        hits = 0
                elif crossing > 0:
                    more = rows * crossing + 1
                    token = _room_for(more, token, count)
                    dim = _room_for(more, dim, count)
                    value = _room_for(more, value, count)
                    count, rows_hit = _scan_rare(
                        x, rows, positive, negative, top, floor, scratch, crossing, t, token, dim, value, count
                    )
                    layers.positions_hit[layer, part] += rows_hit
                if count - count_before + hits > most[b]:  # begin anew, so that the list does not grow with the hits
                    hits_of[b] += count - count_before + hits
                    count = count_before
                if histogram:
                    last = t + rows == runs[run_starts[b + 1] - 1, 1]
                    begin = places[min(b + 1, places.size - 1)] if last else base + (t + rows) * dims
                    _add_to_histogram(bits, raw[begin:], layers.histogram[layer, part])
                if profile:
                    of_rows, kurtosis = at[b, part, t : t + rows], layers.kurtosis[layer, part]
                    absolute, square = _describe_rows(x, rows, dims, kurtosis, of_rows, scratch.totals, scratch.lanes)
                    sequences.absolute[b, layer, part] += absolute
                    sequences.square[b, layer, part] += square
                    if part == REST:
                        filled_rest += size
                    else:
                        filled_all += size
        listed_of[b] = count - count_before
        hits_of[b] += listed_of[b]
        if profile:
            medians = sequences.median[b, layer]
            for population, filled in ((1, filled_rest), (0, filled_all)):
                if population == 0 and filled == filled_rest:  # all are rest
                    medians[0] = medians[1]
                else:
                    medians[population], guess = _median(scratch.values[:filled], guess, scratch.candidates)
    return hits_of, listed_of, token[:count].copy(), dim[:count].copy(), value[:count].copy()
