"""Examples of what is typical of a neuron: a few positions from each of ten intervals of its range.

Which ones is told by a hash of the seed, the text and the position, so neither the order of the sequences nor what they
are batched with matters, and no more is kept than what is chosen so far.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]
INTERVALS, EXAMPLES = 10, 5
_NOWHERE = 2**63 - 1


def position_keys(seed: int, text: bytes, positions: Array) -> Array:
    """The hash of (seed, text, position), uint64 (n,): BLAKE2b of 8 bytes, read as a little-endian number, of the seed
    (8 bytes, little-endian), the text and the position (8 bytes, little-endian)."""
    begun = hashlib.blake2b(seed.to_bytes(8, "little") + text, digest_size=8)
    keys = np.empty(len(positions), "<u8")
    for n, position in enumerate(positions.tolist()):
        one = begun.copy()
        one.update(position.to_bytes(8, "little"))
        keys[n] = int.from_bytes(one.digest(), "little")
    return keys


class Chosen(NamedTuple):
    """What is kept of n neurons; by neuron, interval and rank where an array has three axes."""

    key: Any  # uint64 (n, 10, 5), in ascending order
    sequence: Any  # int64 (n, 10, 5), where there is none the largest number
    token: Any  # int64 (n, 10, 5)
    value: Any  # float32 (n, 10, 5)
    count: Any  # int64 (n, 10): positions in the interval
    low: Any  # float32 (n,): smallest value
    high: Any  # float32 (n,): largest value


class TypicalExamples:
    """The examples of n neurons.

    bounds   float64 (n, 11): the ends of their intervals; see `interval_bounds`
    """

    def __init__(self, bounds: Array):
        n, shape = len(bounds), (len(bounds), INTERVALS, EXAMPLES)
        self.bounds = bounds
        self._inner = np.ascontiguousarray(bounds[:, 1:-1].T)
        self.chosen = Chosen(
            np.zeros(shape, np.uint64), np.full(shape, _NOWHERE), np.zeros(shape, np.int64),
            np.zeros(shape, np.float32), np.zeros((n, INTERVALS), np.int64), np.full(n, np.inf, np.float32),
            np.full(n, -np.inf, np.float32),
        )  # fmt: skip

    def add(self, sequence: int, positions: Array, keys: Array, values: Array) -> Array:
        """Take a sequence's values float32 (T, n), NaN where there is none, at positions (T,) with these keys.

        Sequences come in ascending order. Gives which neurons have an example from it, bool (n,).
        """
        taken = np.zeros(values.shape[1], np.bool_)
        order = np.argsort(keys, kind="stable")
        _take(values, order, keys, positions, sequence, self._inner, self.chosen, taken)
        return taken

    def sequences(self, neuron: int) -> set[int]:
        """Those of the examples of one of the neurons."""
        return {int(one) for one in self.chosen.sequence[neuron].flat if one != _NOWHERE}

    def rows(self) -> dict[str, Array]:
        """Columns of `GALLERY_EXAMPLES`, with `at` for the neuron: a row for each example, and one with `rank` 0 for
        each interval without any."""
        number = np.minimum(self.chosen.count, EXAMPLES)[:, :, None]
        rank = np.arange(EXAMPLES)
        at, interval, n = np.nonzero((rank < number) | ((number == 0) & (rank == 0)))
        there = self.chosen.count[at, interval] > 0
        return {
            "at": at,
            "interval": interval,
            "low": self.bounds[at, interval],
            "high": self.bounds[at, interval + 1],
            "in_interval": self.chosen.count[at, interval],
            "rank": np.where(there, n + 1, 0),
            "value": self.chosen.value[at, interval, n],
            "sequence": np.where(there, self.chosen.sequence[at, interval, n], 0),
            "token": self.chosen.token[at, interval, n],
        }


def interval_bounds(low: Array, high: Array) -> Array:
    """The ends of ten equal intervals from the smallest to the largest values (n,), float64 (n, 11)."""
    first, last = low.astype(np.float64)[:, None], high.astype(np.float64)[:, None]
    bounds: Array = first + (last - first) * (np.arange(INTERVALS + 1) / INTERVALS)
    bounds[:, -1] = last[:, 0]
    return bounds


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _take(
    values: Any, order: Any, keys: Any, positions: Any, sequence: int, inner: Any, chosen: Chosen, taken: Any
) -> None:
    last = chosen.key.shape[2] - 1
    for t in order:
        key = keys[t]
        for n in range(values.shape[1]):
            value = values[t, n]
            if np.isnan(value):
                continue
            chosen.low[n] = min(chosen.low[n], value)
            chosen.high[n] = max(chosen.high[n], value)
            interval = 0
            for bound in range(inner.shape[0]):
                interval += value >= inner[bound, n]
            number = chosen.count[n, interval]
            chosen.count[n, interval] = number + 1
            at = min(number, last + 1)
            # Behind equal keys: of the same text the earlier sequence stands first.
            while at > 0 and chosen.key[n, interval, at - 1] > key:
                at -= 1
            if at > last:
                continue
            for k in range(min(number, last), at, -1):
                chosen.key[n, interval, k] = chosen.key[n, interval, k - 1]
                chosen.sequence[n, interval, k] = chosen.sequence[n, interval, k - 1]
                chosen.token[n, interval, k] = chosen.token[n, interval, k - 1]
                chosen.value[n, interval, k] = chosen.value[n, interval, k - 1]
            chosen.key[n, interval, at] = key
            chosen.sequence[n, interval, at] = sequence
            chosen.token[n, interval, at] = positions[t]
            chosen.value[n, interval, at] = value
            taken[n] = True
