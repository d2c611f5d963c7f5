"""Compiled passes over sequences that have too many hits to be listed: counts at some thresholds, and the extremes."""

import numpy as np
from numba import njit

from outlier_features.scan.scan_kernel import TILE, as_float32


@njit(nogil=True, cache=True, error_model="numpy")
def _tile_extremes(x, rows, largest, extremes):
    """Raise `largest` (rows * H,) and `extremes` (H,) to abs(x) of a tile; returns the largest of all, as bits."""
    dims = extremes.size
    bits = np.uint32(0)
    for row in range(rows):
        values = x[row * dims : (row + 1) * dims].view(np.uint32)
        at, over = largest[row * dims : (row + 1) * dims].view(np.uint32), extremes.view(np.uint32)
        for h in range(dims):
            magnitude = values[h] & np.uint32(0x7FFFFFFF)  # of floats without a sign: in the same order as the floats
            at[h] = max(at[h], magnitude)
            over[h] = max(over[h], magnitude)
            bits = max(bits, magnitude)
    return bits


@njit(nogil=True, cache=True, error_model="numpy")
def _count_row(values, threshold, positive, negative):
    """Add each value's being a hit to the counts (H,) of its sign; returns the number of hits."""
    found = np.uint32(0)
    for h in range(values.size):
        above, below = np.uint32(values[h] >= threshold), np.uint32(values[h] <= -threshold)
        positive[h] += above
        negative[h] += below
        found = np.uint32(found + np.uint32(above + below))
    return found


@njit(nogil=True, cache=True, error_model="numpy")
def _count_dims(x, rows, dims, chosen, threshold, positive, negative, token_counts):
    """Add to the counts of the chosen dims (C,) and of each row (rows,) a tile's hits."""
    for row in range(rows):
        for h in chosen:
            above = np.uint32(x[row * dims + h] >= threshold)
            below = np.uint32(x[row * dims + h] <= -threshold)
            positive[h] += above
            negative[h] += below
            token_counts[row] += above + below


@njit(nogil=True, cache=True, error_model="numpy")
def _dims_reaching(extremes, threshold, found):
    """Write the dims whose extreme reaches a threshold to `found` (H + 1,); returns how many they are."""
    count = 0
    for h in range(extremes.size):
        found[count] = h
        count += np.int64(extremes[h] >= threshold)
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def count_layer(raw, kind, start, runs, thresholds, largest, extremes, counts, token_counts, tile):
    """Count one layer of a sequence.

    raw, kind       as in `scan_kernel.scan_layer`; the sequence lies at `start` as (T, H)
    runs            int64 (R, 3): first position, one past the last, part
    thresholds      float32 (K,), ascending: abs(x) at or above one is a hit
    largest         float32 (T * H,): raised to abs(x) where that is larger
    extremes        float32 (2, H): the same for each part and dim
    counts          uint32 (K, 2, 2, H): hits of each threshold, part, sign (positive, negative) and dim are added
    token_counts    uint32 (K, T): hits of each threshold and position are added
    tile            float32 (TILE * H,): working memory
    """
    dims = extremes.shape[1]
    reached, reaching = thresholds.view(np.uint32), np.empty(dims + 1, np.int32)
    for r in range(runs.shape[0]):
        part = runs[r, 2]
        for t in range(runs[r, 0], runs[r, 1], TILE):
            rows = min(TILE, runs[r, 1] - t)
            begin, size = start + t * dims, rows * dims
            x = as_float32(raw[begin : begin + size], kind, tile)
            most = _tile_extremes(x, rows, largest[t * dims : t * dims + size], extremes[part])
            for k in range(thresholds.size):
                if most < reached[k]:
                    break
                positive, negative = counts[k, part, 0], counts[k, part, 1]
                count = _dims_reaching(extremes[part], thresholds[k], reaching)
                if count > dims // 8:
                    for row in range(rows):
                        values = x[row * dims : (row + 1) * dims]
                        token_counts[k, t + row] += _count_row(values, thresholds[k], positive, negative)
                else:
                    _count_dims(
                        x,
                        rows,
                        dims,
                        reaching[:count],
                        thresholds[k],
                        positive,
                        negative,
                        token_counts[k, t : t + rows],
                    )


@njit(nogil=True, cache=True, error_model="numpy")
def list_above(raw, places, kind, runs, run_starts, dims, threshold, bounds, tile):
    """The values of one layer with abs(x) above a threshold and at or above their sequence's bound.

    raw, places, kind, runs, run_starts   as in `scan_kernel.scan_layer`
    bounds                                float64 (B,); where it is infinite, the sequence is not looked at

    Returns the number of them in each sequence, int64 (B,), and token, dim (uint32) and value (float32) of each.
    """
    capacity, count = 4096, 0
    token, dim, value = np.empty(capacity, np.uint32), np.empty(capacity, np.uint32), np.empty(capacity, np.float32)
    found = np.zeros(run_starts.size - 1, np.int64)
    for b in range(run_starts.size - 1):
        if not bounds[b] < np.inf:
            continue
        before = count
        for r in range(run_starts[b], run_starts[b + 1]):
            for t in range(runs[r, 0], runs[r, 1], TILE):
                rows = min(TILE, runs[r, 1] - t)
                begin = places[b] + t * dims
                x = as_float32(raw[begin : begin + rows * dims], kind, tile)
                for i in range(rows * dims):
                    magnitude = np.float64(abs(x[i]))
                    if magnitude > threshold and magnitude >= bounds[b]:
                        if count == capacity:
                            capacity *= 2
                            token = np.append(token, np.empty(count, np.uint32))
                            dim = np.append(dim, np.empty(count, np.uint32))
                            value = np.append(value, np.empty(count, np.float32))
                        token[count] = t + i // dims
                        dim[count] = i % dims
                        value[count] = x[i]
                        count += 1
        found[b] = count - before
    return found, token[:count].copy(), dim[:count].copy(), value[:count].copy()
