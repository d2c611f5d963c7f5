"""The compiled reading of neurons' values: of one sequence's positions of one class, everything that is kept of them.

Neurons are read in strips of `LANES`, which are copied before they are used: rows that are read side by side wait for
memory. Every neuron's numbers are made of its own values alone, in an order that is written here, so they depend on no
strip, no thread and no batch.
"""

from math import ldexp
from typing import Any, NamedTuple

import numpy as np
from numba import njit

LANES = 32
BINS = 64
WAITING = 16
NOWHERE = -1  # a place in a list that is not full
_PLACE = 32  # bits of a place that say the position in the sequence; those above are the sequence
_LARGEST_BIN = 2.0**24  # a bin is no narrower than the step between float32 numbers at the largest magnitude
_SMALLEST = -149  # the exponent of the smallest float32


class Store(NamedTuple):
    """What is kept of D neurons at the positions of one class.

    A side is a list of sequences in the order of values, from the largest on; of side `min` the values lie here with
    the opposite sign. Of equal values the earlier place stands first.
    """

    waiting: Any  # float32 (2, WAITING, D): extremes of sequences that are to be put into the lists together
    waiting_at: Any  # int32 (2, WAITING, D): their positions
    value: Any  # float32 (2, D, k), -inf where the list is not full
    place: Any  # int64 (2, D, k): sequence << 32 | position
    least: Any  # float32 (2, D): the last of the list
    pilot: Any  # float32 (D,): the first value; sums are taken about it, or cancellation would ruin kurtosis
    sums: Any  # float64 (4, D): sums of (x - pilot)**1 .. **4
    low: Any  # float32 (D,)
    high: Any  # float32 (D,)
    active: Any  # int64 (D,): values > 0
    exponent: Any  # int32 (D,): bins are 2**exponent wide
    scale: Any  # float64 (D,): bins per unit, 2**-exponent
    histogram: Any  # uint32 (D, 64): a bin's number, which its lower end is a multiple of, modulo 64


def new_store(neurons: int, examples: int) -> Store:
    return Store(
        waiting=np.empty((2, WAITING, neurons), np.float32),
        waiting_at=np.empty((2, WAITING, neurons), np.int32),
        value=np.full((2, neurons, examples), -np.inf, np.float32),
        place=np.full((2, neurons, examples), NOWHERE, np.int64),
        least=np.full((2, neurons), -np.inf, np.float32),
        pilot=np.zeros(neurons, np.float32),
        sums=np.zeros((4, neurons)),
        low=np.full(neurons, np.inf, np.float32),
        high=np.full(neurons, -np.inf, np.float32),
        active=np.zeros(neurons, np.int64),
        exponent=np.full(neurons, _SMALLEST, np.int32),
        scale=np.full(neurons, ldexp(1.0, -_SMALLEST)),
        histogram=np.zeros((neurons, BINS), np.uint32),
    )


@njit(nogil=True, cache=True, error_model="numpy")
def insert_rows(rows, tokens, sequences, value, place, least, begin, stop):
    """Put B sequences into the lists of neurons begin..stop, of one side (D, k).

    rows        float32 (B or more, D), their largest values
    tokens      int32 (the same), the positions of these
    sequences   int64 (B,), all later than those that are in the lists

    A row that is larger than all before it moves a whole list. Where most neurons grow, rows are therefore put in order
    from the last on, and then merged with the lists.
    """
    last = sequences.size - 1
    found, found_at = np.empty((LANES, value.shape[1]), np.float32), np.empty((LANES, value.shape[1]), np.int64)
    for first in range(begin, stop, LANES):
        lanes = min(LANES, stop - first)
        growing = 0
        for n in range(first, first + lanes):
            growing += rows[last, n] > rows[0, n]
        if 4 * growing >= 3 * lanes:
            _merge_rows(rows, tokens, sequences, value, place, least, first, lanes, found, found_at)
        else:
            _insert_each(rows, tokens, sequences, value, place, least, first, lanes)


@njit(nogil=True, cache=True, error_model="numpy")
def _insert_each(rows, tokens, sequences, value, place, least, first, lanes):
    k = value.shape[1]
    last = least[first : first + lanes]
    for b in range(sequences.size):
        x = rows[b, first : first + lanes]
        some = False
        for j in range(lanes):
            some |= x[j] > last[j]
        if some:
            for j in range(lanes):
                v = x[j]
                if v > last[j]:
                    n, p = first + j, k - 1
                    while p > 0 and value[n, p - 1] < v:
                        value[n, p] = value[n, p - 1]
                        place[n, p] = place[n, p - 1]
                        p -= 1
                    value[n, p] = v
                    place[n, p] = sequences[b] << _PLACE | np.int64(tokens[b, n])
                    last[j] = value[n, k - 1]


@njit(nogil=True, cache=True, error_model="numpy")
def _merge_rows(rows, tokens, sequences, value, place, least, first, lanes, found, found_at):
    """found, found_at   room for what may enter each list, in order"""
    k = value.shape[1]
    last = least[first : first + lanes]
    size, bar = np.zeros(lanes, np.int64), np.full(lanes, -np.inf, np.float32)
    for b in range(sequences.size - 1, -1, -1):
        x = rows[b, first : first + lanes]
        some = False
        for j in range(lanes):
            some |= (x[j] > last[j]) & (x[j] >= bar[j])
        if some:
            for j in range(lanes):
                v = x[j]
                if v > last[j] and v >= bar[j]:
                    p = min(size[j], k - 1)
                    while p > 0 and found[j, p - 1] <= v:  # an earlier sequence stands before its equals
                        found[j, p] = found[j, p - 1]
                        found_at[j, p] = found_at[j, p - 1]
                        p -= 1
                    found[j, p] = v
                    found_at[j, p] = sequences[b] << _PLACE | np.int64(tokens[b, first + j])
                    size[j] = min(size[j] + 1, k)
                    if size[j] == k:
                        bar[j] = found[j, k - 1]
    for j in range(lanes):
        n, kept, new = first + j, 0, 0
        while kept + new < k:
            if new < size[j] and found[j, new] > value[n, kept]:
                new += 1
            else:
                kept += 1
        kept, new, p = kept - 1, new - 1, k - 1
        while new >= 0:
            if kept >= 0 and value[n, kept] < found[j, new]:
                value[n, p], place[n, p] = value[n, kept], place[n, kept]
                kept -= 1
            else:
                value[n, p], place[n, p] = found[j, new], found_at[j, new]
                new -= 1
            p -= 1
        last[j] = value[n, k - 1]


@njit(nogil=True, cache=True, error_model="numpy")
def width_exponent(low, high, at_least):
    """The exponent of the narrowest bins, not below `at_least`, of which values from low to high need at most 64."""
    largest = max(abs(np.float64(low)), abs(np.float64(high)))
    exponent = at_least
    while largest * ldexp(1.0, -exponent) >= _LARGEST_BIN:
        exponent += 1
    while np.floor(high * ldexp(1.0, -exponent)) - np.floor(low * ldexp(1.0, -exponent)) >= BINS:
        exponent += 1
    return exponent


@njit(nogil=True, cache=True, error_model="numpy")
def _guess(low, high):
    """An exponent that is not above that of the bins, and at most a few below."""
    spread = np.float64(high) - np.float64(low)
    largest = max(abs(np.float64(low)), abs(np.float64(high)))
    by_spread = int(np.floor(np.log2(spread))) - 7 if spread > 0 else _SMALLEST
    by_size = int(np.floor(np.log2(largest))) - 24 if largest > 0 else _SMALLEST
    return max(_SMALLEST, by_spread, by_size)


@njit(nogil=True, cache=True, error_model="numpy")
def bins_exponent(low, high):
    """The exponent of the bins of values from low to high, which no other values matter to."""
    return width_exponent(low, high, _guess(low, high))


@njit(nogil=True, cache=True, error_model="numpy")
def exponents_of(low, high):
    """`bins_exponent` of each neuron, int32 (D,); 0 where it has no values."""
    out = np.zeros(low.size, np.int32)
    for n in range(low.size):
        if low[n] <= high[n]:
            out[n] = bins_exponent(low[n], high[n])
    return out


@njit(nogil=True, cache=True, error_model="numpy")
def move_counts(counts, low, high, exponent, wider, out):
    """Add the counts of bins 2**exponent wide, of values from low to high, to those of wider bins."""
    scale = ldexp(1.0, -exponent)
    shift = min(wider - exponent, 62)
    for number in range(np.int64(np.floor(low * scale)), np.int64(np.floor(high * scale)) + 1):
        out[(number >> shift) & (BINS - 1)] += counts[number & (BINS - 1)]


@njit(nogil=True, cache=True, error_model="numpy")
def take(values, rows, tokens, store, shift, slot, begin, stop, is_first):
    """Take the neurons begin..stop of a sequence into the store; returns whether all values are finite.

    values     float32 (R, M)
    rows       int64 (m,), those of the class, in the order of their positions
    tokens     int64 (m,), these positions
    shift      in the store, the first of these M neurons
    slot       of what waits, where the extremes are put
    is_first   the store has no positions of these neurons yet

    Where values are not finite, what the store has of these neurons is of no use.
    """
    count = rows.size
    tile = np.zeros(count * LANES, np.float32)
    high, low = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    high_at, low_at = np.empty(LANES, np.int32), np.empty(LANES, np.int32)
    positive, pilot, scale = np.empty(LANES, np.int32), np.zeros(LANES), np.zeros(LANES)
    s1, s2, s3, s4 = np.empty(LANES), np.empty(LANES), np.empty(LANES), np.empty(LANES)
    bins, counts, spare = np.empty(LANES, np.int32), np.empty(LANES * BINS, np.uint32), np.empty(BINS, np.uint32)
    # Arrays of a tuple are counted as used each time that they are named, which costs more than what is done here.
    most, most_at, least, least_at = store.waiting[0], store.waiting_at[0], store.waiting[1], store.waiting_at[1]
    sums, active, pilots = store.sums, store.active, store.pilot
    lows, highs, exponents, scales, histogram = store.low, store.high, store.exponent, store.scale, store.histogram
    for first in range(begin, stop, LANES):
        lanes = min(LANES, stop - first)
        for i in range(count):
            row, to = values[rows[i], first:], tile[i * LANES : i * LANES + LANES]
            if lanes == LANES:
                for j in range(LANES):
                    to[j] = row[j]
            else:
                for j in range(lanes):
                    to[j] = row[j]
        _extremes(tile, count, high, low, high_at, low_at, positive)
        if is_first:
            for j in range(lanes):
                pilots[shift + first + j] = tile[j]
        for j in range(lanes):
            pilot[j] = pilots[shift + first + j]
        _sums(tile, count, pilot, s1, s2, s3, s4)
        for j in range(lanes):
            if not (s2[j] < np.inf):
                return False
        for j in range(lanes):
            n = shift + first + j
            sums[0, n] += s1[j]
            sums[1, n] += s2[j]
            sums[2, n] += s3[j]
            sums[3, n] += s4[j]
            active[n] += positive[j]
        for j in range(lanes):
            n = shift + first + j
            most[slot, n], most_at[slot, n] = high[j] + np.float32(0), tokens[high_at[j]]  # no zero has a sign
            least[slot, n], least_at[slot, n] = np.float32(0) - low[j], tokens[low_at[j]]
        for j in range(lanes):
            n = shift + first + j
            new_low, new_high = min(lows[n], low[j]), max(highs[n], high[j])
            if new_low < lows[n] or new_high > highs[n]:
                exponent = exponents[n]
                if is_first:
                    exponent = bins_exponent(new_low, new_high)
                else:
                    exponent = width_exponent(new_low, new_high, exponents[n])
                    if exponent != exponents[n]:
                        spare[:] = 0
                        move_counts(histogram[n], lows[n], highs[n], exponents[n], exponent, spare)
                        histogram[n] = spare
                exponents[n], scales[n] = exponent, ldexp(1.0, -exponent)
                lows[n], highs[n] = new_low + np.float32(0), new_high + np.float32(0)
            scale[j] = scales[n]
        _count(tile, count, scale, bins, counts)
        for j in range(lanes):
            for k in range(BINS):
                histogram[shift + first + j, k] += counts[j * BINS + k]
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def _extremes(tile, count, high, low, high_at, low_at, positive):
    """Largest and smallest value of each lane, the first row where each stands, and how many values are positive."""
    for j in range(LANES):
        high[j] = low[j] = tile[j]
        high_at[j] = low_at[j] = 0
        positive[j] = 0
    for i in range(count):
        x = tile[i * LANES : i * LANES + LANES]
        at = np.int32(i)
        for j in range(LANES):
            v = x[j]
            more, less = v > high[j], v < low[j]
            high[j] = v if more else high[j]
            high_at[j] = at if more else high_at[j]
            low[j] = v if less else low[j]
            low_at[j] = at if less else low_at[j]
            positive[j] += np.int32(v > np.float32(0))


@njit(nogil=True, cache=True, error_model="numpy")
def _sums(tile, count, pilot, s1, s2, s3, s4):
    """Power sums of each lane about its pilot."""
    for j in range(LANES):
        s1[j] = s2[j] = s3[j] = s4[j] = 0.0
    i = 0
    while i + 4 <= count:
        x0, x1 = tile[i * LANES : i * LANES + LANES], tile[(i + 1) * LANES : (i + 2) * LANES]
        x2, x3 = tile[(i + 2) * LANES : (i + 3) * LANES], tile[(i + 3) * LANES : (i + 4) * LANES]
        for j in range(LANES):
            p = pilot[j]
            a, b, c, d = x0[j] - p, x1[j] - p, x2[j] - p, x3[j] - p
            a2, b2, c2, d2 = a * a, b * b, c * c, d * d
            s1[j] += (a + b) + (c + d)
            s2[j] += (a2 + b2) + (c2 + d2)
            s3[j] += (a2 * a + b2 * b) + (c2 * c + d2 * d)
            s4[j] += (a2 * a2 + b2 * b2) + (c2 * c2 + d2 * d2)
        i += 4
    while i < count:
        x = tile[i * LANES : i * LANES + LANES]
        for j in range(LANES):
            a = x[j] - pilot[j]
            a2 = a * a
            s1[j] += a
            s2[j] += a2
            s3[j] += a2 * a
            s4[j] += a2 * a2
        i += 1


@njit(nogil=True, cache=True, error_model="numpy")
def _count(tile, count, scale, bins, counts):
    """How many values of each lane are in each bin."""
    counts[:] = 0
    for i in range(count):
        x = tile[i * LANES : i * LANES + LANES]
        for j in range(LANES):
            bins[j] = np.int32(j * BINS) | (np.int32(np.floor(x[j] * scale[j])) & np.int32(BINS - 1))
        for j in range(LANES):
            counts[bins[j]] += np.uint32(1)


@njit(nogil=True, cache=True, error_model="numpy")
def merge_lists(value, place, other_value, other_place, out_value, out_place):
    """The k largest of two lists, (2, D, k1) and (2, D, k2), into (2, D, k); a sequence once, where it is most."""
    for side in range(2):
        for n in range(value.shape[1]):
            a, b, c = 0, 0, 0
            while c < out_value.shape[2]:
                has_a = a < value.shape[2] and place[side, n, a] >= 0
                has_b = b < other_value.shape[2] and other_place[side, n, b] >= 0
                if not has_a and not has_b:
                    break
                first = has_a
                if has_a and has_b:
                    v, w = value[side, n, a], other_value[side, n, b]
                    first = v > w or (v == w and place[side, n, a] < other_place[side, n, b])
                if first:
                    v, at = value[side, n, a], place[side, n, a]
                    a += 1
                else:
                    v, at = other_value[side, n, b], other_place[side, n, b]
                    b += 1
                is_new = True
                for i in range(c):
                    if out_place[side, n, i] >> _PLACE == at >> _PLACE:
                        is_new = False
                if is_new:
                    out_value[side, n, c] = v
                    out_place[side, n, c] = at
                    c += 1


@njit(nogil=True, cache=True, error_model="numpy")
def merge_histograms(counts, low, high, other_counts, other_low, other_high, out):
    """The counts of two stores, (D, 64), in the bins of both stores' values."""
    for n in range(low.size):
        has, other_has = low[n] <= high[n], other_low[n] <= other_high[n]
        if not has and not other_has:
            continue
        wider = bins_exponent(min(low[n], other_low[n]), max(high[n], other_high[n]))
        if has:
            move_counts(counts[n], low[n], high[n], bins_exponent(low[n], high[n]), wider, out[n])
        if other_has:
            narrow = bins_exponent(other_low[n], other_high[n])
            move_counts(other_counts[n], other_low[n], other_high[n], narrow, wider, out[n])
