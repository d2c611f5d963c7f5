"""The compiled pass that lists the values which are large against a scale: a row's RMS, the layer's, or a gain."""

import numpy as np
from numba import njit

from outlier_features.scan.scan_kernel import TILE, as_float32

_LANES = 64  # sums over a row that go on side by side
_GROUP = 32  # values that are compared side by side
_SLACK = 1 + 1e-6  # more than the float32 comparison rounds; what passes it is decided in float64


@njit(nogil=True, cache=True, error_model="numpy")
def _sum_squares(row, lanes):
    """The squares of a row's values in `lanes` (_LANES,): each takes every 64th value in turn, three a step."""
    lanes[:] = 0.0
    begin = 0
    while begin + 3 * _LANES <= row.size:
        some = row[begin : begin + 3 * _LANES]
        a, b, c = some[:_LANES], some[_LANES : 2 * _LANES], some[2 * _LANES :]
        for j in range(_LANES):
            x, y, z = np.float64(a[j]), np.float64(b[j]), np.float64(c[j])
            lanes[j] = ((lanes[j] + x * x) + y * y) + z * z
        begin += 3 * _LANES
    while begin < row.size:
        some = row[begin : min(begin + _LANES, row.size)]
        for j in range(some.size):
            lanes[j] += np.float64(some[j]) * np.float64(some[j])
        begin += _LANES


@njit(nogil=True, cache=True, error_model="numpy")
def _rms_of_rows(x, rows, dims, lanes, rms):
    """The root mean square of each row of a tile, float64 (TILE,); `lanes` is float64 (TILE, _LANES)."""
    for row in range(rows):
        _sum_squares(x[row * dims : (row + 1) * dims], lanes[row])
    rms[:] = 0.0
    for j in range(_LANES):  # one row's lanes are added one after the other, those of other rows meanwhile
        for row in range(TILE):
            rms[row] += lanes[row, j]
    for row in range(rows):
        rms[row] = np.sqrt(rms[row] / dims)


@njit(nogil=True, cache=True, error_model="numpy")
def _list_row(values, k, unit, gains, reach, position, token, dim, value, scaled, count):
    """Append the hits of a row to the lists, which have room for a row and one; returns their new count."""
    inverse = np.float32(_SLACK / unit)
    for begin in range(0, values.size, _GROUP):
        size = min(_GROUP, values.size - begin)
        some, reached = values[begin : begin + size], reach[begin : begin + size]
        above = np.uint32(0)
        for j in range(size):
            above = max(above, np.uint32(abs(some[j]) * inverse >= reached[j]))
        if above:
            for j in range(size):
                if abs(some[j]) * inverse >= reached[j]:
                    ratio = np.float64(some[j]) / (unit * gains[begin + j])
                    token[count] = position
                    dim[count] = begin + j
                    value[count] = some[j]
                    scaled[count] = ratio
                    count += np.int64(abs(ratio) >= k)
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def list_scaled(raw, places, kind, runs, run_starts, k, units, gains, reach, most, tile):
    """The values of one layer of a block of sequences with abs(x) / (unit * gain) >= k.

    raw, places, kind, runs, run_starts   as in `scan_kernel.scan_layer`
    units    float64 (B, 2): that of each sequence and part; NaN: each position's own RMS. At 0 nothing is a hit
    gains    float64 (H,); a dim whose gain is NaN has no hits
    reach    float32 (H,): at most k * abs(gains), NaN where they are
    most     int64 (B,): of a sequence with more hits none is listed
    tile     float32 (TILE * H,): working memory

    Returns the number of hits of each sequence, -1 for one with too many, int64 (B,), and token, dim (uint32), value
    (float32) and value / (unit * gain) (float64) of each hit, ordered by sequence, token, dim.
    """
    dims, capacity, count = gains.size, 4096 + gains.size, 0
    token, dim = np.empty(capacity, np.uint32), np.empty(capacity, np.uint32)
    value, scaled = np.empty(capacity, np.float32), np.empty(capacity, np.float64)
    lanes, rms = np.zeros((TILE, _LANES)), np.empty(TILE)
    found = np.zeros(run_starts.size - 1, np.int64)
    for b in range(run_starts.size - 1):
        before = count
        for r in range(run_starts[b], run_starts[b + 1]):
            own = np.isnan(units[b, runs[r, 2]])
            unit = units[b, runs[r, 2]]
            for t in range(runs[r, 0], runs[r, 1], TILE):
                rows = min(TILE, runs[r, 1] - t)
                begin = places[b] + t * dims
                x = as_float32(raw[begin : begin + rows * dims], kind, tile)
                if own:
                    _rms_of_rows(x, rows, dims, lanes, rms)
                for row in range(rows):
                    values = x[row * dims : (row + 1) * dims]
                    if own:
                        unit = rms[row]
                    if not unit > 0:
                        continue
                    if count + dims + 1 > capacity:
                        more = capacity + dims
                        capacity += more
                        token = np.append(token, np.empty(more, np.uint32))
                        dim = np.append(dim, np.empty(more, np.uint32))
                        value = np.append(value, np.empty(more, np.float32))
                        scaled = np.append(scaled, np.empty(more, np.float64))
                    count = _list_row(values, k, unit, gains, reach, t + row, token, dim, value, scaled, count)
                if count - before > most[b]:
                    break
            if count - before > most[b]:
                break
        found[b] = count - before
        if found[b] > most[b]:
            found[b], count = -1, before
    return found, token[:count].copy(), dim[:count].copy(), value[:count].copy(), scaled[:count].copy()
