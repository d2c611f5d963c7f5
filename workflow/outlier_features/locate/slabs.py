"""A site in slabs that threads work through, each read into memory of its thread, so that memory does not grow."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

from outlier_features.scan.site_tensors import SiteTensors, itemsize

Array = np.ndarray[Any, Any]
State = TypeVar("State")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Slab:
    """Sequences first..last of a site, and of each of their layers the cells begin..end of its T * H."""

    site: SiteTensors
    first: int
    last: int
    begin: int
    end: int

    @property
    def values(self) -> int:
        return (self.last - self.first) * len(self.site.layers) * (self.end - self.begin)

    @property
    def nbytes(self) -> int:
        return self.values * itemsize(self.site.stored)

    def will_need(self) -> None:
        """Ask for the slab to be read ahead."""
        self.site.will_need(self.first, self.last, self.begin, self.end)

    def read(self, buffer: Array) -> Array:
        """Read the values to the front of a buffer, uint32 or uint16.

        Returns where in it the cells of each layer and sequence begin, int64 (L, B).
        """
        site, cells, size = self.site, self.end - self.begin, buffer.itemsize
        starts = site.starts[:, self.first : self.last] + self.begin * size
        if site.in_place:
            spans = site.spans(self.first, self.last, self.begin, self.end)
            filled = np.cumsum(spans[:, 1]) - spans[:, 1]
            target = buffer.view(np.uint8)
            for (start, length), place in zip(spans.tolist(), filled.tolist(), strict=True):
                site.read_into(start, target[place : place + length])
            span = np.searchsorted(spans[:, 0], starts, "right") - 1
            return np.asarray((filled[span] + starts - spans[span, 0]) // size)
        places = np.arange(starts.size).reshape(starts.shape) * cells
        for layer, n in np.ndindex(starts.shape):
            place = places[layer, n]
            site.copy(layer, self.first + n, self.begin, buffer[place : place + cells])
        site.drop(self.first, self.last, self.begin, self.end)
        return places


def slabs_of(site: SiteTensors, values: int, members: Array | None = None) -> Iterator[Slab]:
    """Slabs of at most so many values, or, where there are more layers than that, of one cell of each.

    members   bool (N, T): the positions that are wanted; None: all
    """
    layers = len(site.layers)
    for start, stop, left, right in _boxes(site, members):
        cells = max(1, min(right - left, values // layers))
        sequences = max(1, min(stop - start, values // (layers * (right - left))))
        for first in range(start, stop, sequences):
            for begin in range(left, right, cells):
                yield Slab(site, first, min(first + sequences, stop), begin, min(begin + cells, right))


def _boxes(site: SiteTensors, members: Array | None) -> Iterator[tuple[int, int, int, int]]:
    """Neighbouring sequences that want the same positions: the first, one past the last, and each run of cells."""
    n, t, h = site.shape
    if members is None:
        yield 0, n, 0, t * h
        return
    changes = np.flatnonzero((members[1:] != members[:-1]).any(axis=1)) + 1
    for start, stop in pairwise([0, *changes.tolist(), n]):
        edges = np.flatnonzero(np.diff(members[start], prepend=False, append=False)).reshape(-1, 2)
        for first, last in edges.tolist():
            yield start, stop, first * h, last * h


def work_through(
    slabs: Iterator[Slab], work: Callable[[Slab, State], Result], states: Sequence[State]
) -> Iterator[tuple[Slab, Result]]:
    """Call `work` on each slab, in as many threads as there are states, each call with a state to itself.

    Yields slabs, in order, with what the work returned.
    """
    free: SimpleQueue[State] = SimpleQueue()
    for state in states:
        free.put(state)

    def call(slab: Slab) -> Result:
        state = free.get()
        try:
            return work(slab, state)
        finally:
            free.put(state)

    waiting: deque[tuple[Slab, Future[Result]]] = deque()

    with ThreadPoolExecutor(len(states)) as pool:
        for slab in slabs:
            slab.will_need()
            waiting.append((slab, pool.submit(call, slab)))
            if len(waiting) > 2 * len(states):  # some are read ahead while others are worked on
                slab, future = waiting.popleft()
                yield slab, future.result()
        for slab, future in waiting:
            yield slab, future.result()
