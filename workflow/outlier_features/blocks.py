"""A site in blocks that threads work through: read ahead, and given back behind, so that memory does not grow."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

from outlier_features.scan import SiteTensors, itemsize

Array = np.ndarray[Any, Any]
State = TypeVar("State")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Block:
    """Sequences first..last of a site, and of each of their layers the cells begin..end of its T * H."""

    site: SiteTensors
    first: int
    last: int
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        cells = self.end - self.begin
        return (self.last - self.first) * len(self.site.layers) * cells * itemsize(self.site.dtype)

    def advise(self, advice: Callable[[int, int], None]) -> None:
        """Call `advice(offset, length)` on the block's bytes."""
        _, t, h = self.site.shape
        if self.end - self.begin == t * h:
            self.site.advise(advice, self.first, self.last)
            return
        size = itemsize(self.site.dtype)
        for sequence in range(self.first, self.last):
            for start in self.site.starts:
                advice((start + sequence * self.site.stride + self.begin) * size, (self.end - self.begin) * size)


def blocks_of(site: SiteTensors, values: int, members: Array | None = None) -> Iterator[Block]:
    """Blocks of at most so many values, or, where there are more layers than that, of one cell of each.

    members   bool (N, T): the positions that are wanted; None: all
    """
    layers = len(site.layers)
    for start, stop, left, right in _boxes(site, members):
        cells = max(1, min(right - left, values // layers))
        sequences = max(1, min(stop - start, values // (layers * (right - left))))
        for first in range(start, stop, sequences):
            for begin in range(left, right, cells):
                yield Block(site, first, min(first + sequences, stop), begin, min(begin + cells, right))


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
    blocks: Iterator[Block], work: Callable[[Block, State], Result], states: Sequence[State]
) -> Iterator[tuple[Block, Result]]:
    """Call `work` on each block, in as many threads as there are states, each call with a state to itself.

    Yields blocks, in order, with what the work returned.
    """
    free: SimpleQueue[State] = SimpleQueue()
    for state in states:
        free.put(state)

    def call(block: Block) -> Result:
        state = free.get()
        try:
            return work(block, state)
        finally:
            free.put(state)

    waiting: deque[tuple[Block, Future[Result]]] = deque()

    def finish() -> tuple[Block, Result]:
        block, future = waiting.popleft()
        result = future.result()
        block.advise(block.site.file.drop)
        return block, result

    with ThreadPoolExecutor(len(states)) as pool:
        for block in blocks:
            block.advise(block.site.file.will_need)
            waiting.append((block, pool.submit(call, block)))
            if len(waiting) > 2 * len(states):  # some are read ahead while others are worked on
                yield finish()
        while waiting:
            yield finish()
