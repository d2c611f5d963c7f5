"""A bank of neurons in memory, to which sequences are added."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from outlier_features.neurons.kept_neurons import BankShape, KeptNeurons
from outlier_features.neurons.neurons_kernel import LANES, WAITING, Store, insert_rows, new_store, take
from outlier_features.neurons.position_classes import CLASSES

Array = np.ndarray[Any, Any]
Job = Callable[[], bool]


@dataclass
class _OfClass:
    """What is kept at the positions of one class; a dense MLP counts as one expert.

    count       int64 (E,): positions
    waiting     int64 (E,): sequences whose extremes are to be put into the lists
    sequences   int64 (E, WAITING): these
    """

    store: Store
    count: Array
    waiting: Array
    sequences: Array


class Bank:
    """shape      of the bank
    examples   sequences in a list
    threads    that share the neurons of a dense MLP; of routed experts each is a job
    """

    def __init__(self, shape: BankShape, examples: int, threads: int):
        self._shape, self._examples = shape, examples
        parts = 1 if shape.experts else threads
        width = -(-shape.neurons // (parts * LANES)) * LANES
        self._parts = [(at, min(at + width, shape.neurons)) for at in range(0, shape.neurons, width)]
        self._classes: dict[int, _OfClass] = {}

    def jobs(self, expert: int, values: Array, tokens: Array, classes: Array, sequence: int) -> Iterator[Job]:
        """What there is to do, before more of the same expert comes; a job says whether its values are all finite.

        expert     0 of a dense MLP
        values     float32 (R, M)
        tokens     int64 (R,), the positions in the sequence, in order
        classes    int64 (T,), of all positions of the sequence
        sequence   later than all before
        """
        of_rows = classes[tokens]
        for number in CLASSES:
            rows = np.flatnonzero(of_rows == number)
            if not rows.size:
                continue
            one = self._of_class(number)
            slot, is_first = int(one.waiting[expert]), one.count[expert] == 0
            one.sequences[expert, slot] = sequence
            one.count[expert] += rows.size
            one.waiting[expert] = (slot + 1) % WAITING
            sequences = one.sequences[expert].copy() if slot + 1 == WAITING else None
            shift = expert * self._shape.neurons
            for begin, stop in self._parts:
                yield partial(
                    _add, values, rows, tokens[rows], one.store, shift, slot, begin, stop, is_first, sequences
                )

    def _of_class(self, number: int) -> _OfClass:
        if number not in self._classes:
            experts = max(self._shape.experts, 1)
            store = new_store(self._shape.rows, self._examples)
            none = np.zeros(experts, np.int64)
            self._classes[number] = _OfClass(store, none, none.copy(), np.zeros((experts, WAITING), np.int64))
        return self._classes[number]

    def kept(self) -> Iterator[tuple[int, KeptNeurons]]:
        """By class, all that was added."""
        for number, one in sorted(self._classes.items()):
            for expert in np.flatnonzero(one.waiting).tolist():
                begin = expert * self._shape.neurons
                sequences = one.sequences[expert, : one.waiting[expert]]
                _put_into_lists(one.store, begin, begin + self._shape.neurons, sequences)
            one.waiting[:] = 0
            yield number, KeptNeurons.of_store(one.store, one.count)


def _add(
    values: Array, rows: Array, tokens: Array, store: Store, shift: int, slot: int, begin: int, stop: int,
    is_first: bool, sequences: Array | None,
) -> bool:  # fmt: skip
    finite = take(values, rows, tokens, store, shift, slot, begin, stop, is_first)
    if sequences is not None:
        _put_into_lists(store, shift + begin, shift + stop, sequences)
    return bool(finite)


def _put_into_lists(store: Store, begin: int, stop: int, sequences: Array) -> None:
    for side in range(2):
        insert_rows(
            store.waiting[side], store.waiting_at[side], sequences, store.value[side], store.place[side],
            store.least[side], begin, stop,
        )  # fmt: skip
