"""What is kept of neurons: it adds up over sequences, chunks, classes of positions and corpora.

A *bank* is the neurons of a block's dense MLP, or of all its routed experts together. What is kept of one lies in a
file by the class of the positions (`position_classes`), as tensors `{bank}.{class}.{field}`; there are none of a class
that no position is of.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any

import numpy as np

from outlier_features.files.tensorfile import TensorFile
from outlier_features.neurons.neurons_kernel import (
    BINS,
    NOWHERE,
    Store,
    merge_histograms,
    merge_lists,
)

Array = np.ndarray[Any, Any]
ABSENT = "neurons_absent"  # in a provenance: by block, why its neurons are not known
BANKS = "banks"  # in a provenance: of each bank its experts (none of a dense MLP) and the neurons of each
_PLACE = 32
_FORMATS = {"int64": "I64", "float32": "F32", "float64": "F64", "uint32": "U32"}


@dataclass(frozen=True)
class BankShape:
    """Of a bank: its block, its experts (none of a dense MLP), and neurons of each."""

    name: str
    layer: int
    experts: int
    neurons: int

    @classmethod
    def all_of(cls, provenance: Mapping[str, Any]) -> "list[BankShape]":
        banks = provenance[BANKS].items()
        return [cls(name, int(name.partition(".")[0]), *shape) for name, shape in banks]

    @property
    def rows(self) -> int:
        return max(self.experts, 1) * self.neurons


@dataclass(frozen=True)
class KeptNeurons:
    """Of D neurons, those of a bank expert by expert, at the positions of one class or of several.

    A side is a list of at most k sequences with their extremes, the most extreme first; of side `min` (the second) the
    values have the opposite sign. Bins are as wide as `neurons_kernel.bins_exponent` says of low and high.
    """

    count: Array  # int64 (E,): positions
    value: Array  # float32 (2, D, k), -inf where there are fewer sequences
    place: Array  # int64 (2, D, k): sequence << 32 | position, -1 where there are fewer
    moments: Array  # float64 (4, D): mean, and sums of (x - mean)**2 .. **4
    low: Array  # float32 (D,), inf where there are no positions
    high: Array  # float32 (D,), -inf where there are none
    active: Array  # int64 (D,): values > 0
    histogram: Array  # uint32 (D, 64): by the bins' numbers modulo 64

    @classmethod
    def of_store(cls, store: Store, count: Array) -> "KeptNeurons":
        moments = _central(store.sums, store.pilot, _each(count, store.low.size))
        return cls(count, store.value, store.place, moments, store.low, store.high, store.active, store.histogram)

    @classmethod
    def nothing(cls, shape: BankShape, examples: int) -> "KeptNeurons":
        lists, rows = (2, shape.rows, examples), shape.rows
        return cls(
            np.zeros(max(shape.experts, 1), np.int64), np.full(lists, -np.inf, np.float32),
            np.full(lists, NOWHERE, np.int64), np.zeros((4, rows)), np.full(rows, np.inf, np.float32),
            np.full(rows, -np.inf, np.float32), np.zeros(rows, np.int64), np.zeros((rows, BINS), np.uint32),
        )  # fmt: skip

    @classmethod
    def read(cls, file: TensorFile, bank: str, of_class: int) -> "KeptNeurons | None":
        """What a file has; None where it has no positions of the class."""
        prefix = _prefix(bank, of_class)
        if f"{prefix}count" not in file.entries:
            return None
        return cls(**{field.name: file.array(f"{prefix}{field.name}") for field in fields(cls)})

    def arrays(self, bank: str, of_class: int) -> dict[str, Array]:
        """As they are named in a file."""
        return {f"{_prefix(bank, of_class)}{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def formats(cls, shape: BankShape, examples: int, of_class: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Format and shape of `arrays`."""
        empty = cls.nothing(shape, examples).arrays(shape.name, of_class)
        return {name: (_FORMATS[array.dtype.name], array.shape) for name, array in empty.items()}

    def later(self, sequences: int) -> "KeptNeurons":
        """With the sequences that many further on."""
        return replace(self, place=np.where(self.place >= 0, self.place + (sequences << _PLACE), self.place))

    @property
    def counts(self) -> Array:
        """Positions of each neuron, int64 (D,)."""
        return _each(self.count, self.low.size)


def merged(parts: Iterable[KeptNeurons], shape: BankShape, examples: int) -> KeptNeurons:
    """What is kept of all of them together, with lists as long as `examples`; whatever the order of the parts, the same
    but for the last bits of the moments."""
    return reduce(lambda one, other: _merged(one, other, examples), parts, KeptNeurons.nothing(shape, examples))


def _merged(one: KeptNeurons, other: KeptNeurons, examples: int) -> KeptNeurons:
    neurons = one.low.size
    value = np.full((2, neurons, examples), -np.inf, np.float32)
    place = np.full((2, neurons, examples), NOWHERE, np.int64)
    merge_lists(one.value, one.place, other.value, other.place, value, place)
    histogram = np.zeros((neurons, BINS), np.uint32)
    merge_histograms(one.histogram, one.low, one.high, other.histogram, other.low, other.high, histogram)
    return KeptNeurons(
        one.count + other.count,
        value,
        place,
        _joined(one.moments, one.counts, other.moments, other.counts),
        np.minimum(one.low, other.low),
        np.maximum(one.high, other.high),
        one.active + other.active,
        histogram,
    )


def split_places(place: Array) -> tuple[Array, Array]:
    """Sequences and positions."""
    return (place >> _PLACE).astype(np.uint32), (place & ((1 << _PLACE) - 1)).astype(np.uint32)


def _prefix(bank: str, of_class: int) -> str:
    return f"{bank}.{of_class}."


def _each(count: Array, neurons: int) -> Array:
    return np.repeat(count, neurons // count.size)


def _central(sums: Array, pilot: Array, count: Array) -> Array:
    """Mean and sums of powers about it, (4, D), from sums of powers about a pilot."""
    n = np.maximum(count, 1)
    s1, s2, s3, s4 = sums
    m = s1 / n
    second = np.maximum(s2 - m * s1, 0)
    third = s3 - 3 * m * s2 + 2 * m**2 * s1
    fourth = np.maximum(s4 - 4 * m * s3 + 6 * m**2 * s2 - 3 * m**3 * s1, 0)
    return np.stack([pilot.astype(np.float64) + m, second, third, fourth])


def _joined(one: Array, n: Array, other: Array, k: Array) -> Array:
    """Moments (4, D) of two sets of n and k values together (Pebay 2008)."""
    a, b = n.astype(np.float64), k.astype(np.float64)
    total = np.maximum(a + b, 1)
    share, rest = b / total, a / total
    delta = np.where((n > 0) & (k > 0), other[0] - one[0], 0.0)
    mean = np.where(n > 0, one[0] + delta * share, other[0])
    both = delta * share * rest
    second = one[1] + other[1] + delta * both * total
    third = one[2] + other[2] + delta**2 * both * (a - b) + 3 * delta * (rest * other[1] - share * one[1])
    fourth = (
        one[3] + other[3]
        + delta**3 * both * (a * rest - a * share + b * share)
        + 6 * delta**2 * (rest**2 * other[1] + share**2 * one[1])
        + 4 * delta * (rest * other[2] - share * one[2])
    )  # fmt: skip
    return np.stack([mean, second, third, fourth])
