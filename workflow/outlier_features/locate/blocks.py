"""A site in blocks that threads work through, each read into memory of its thread, so that memory does not grow."""

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
class Block:
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
        return self.values * itemsize(self.site.dtype)

    @property
    def extents(self) -> list[tuple[int, int]]:
        """Where the block's values lie without a gap: start in the file and number, in values."""
        sequences, cells, stride = self.last - self.first, self.end - self.begin, self.site.stride
        starts = [start + self.first * stride + self.begin for start in self.site.starts]
        if self._is_contiguous:
            return [(starts[0], self.values)]
        if cells == stride or sequences == 1:
            return [(start, sequences * cells) for start in starts]
        return [(start + n * stride, cells) for start in starts for n in range(sequences)]

    @property
    def _is_contiguous(self) -> bool:
        """Whether all layers of a sequence lie side by side, and are all in the block."""
        site, cells = self.site, self.end - self.begin
        return site.stride == len(site.layers) * cells and site.starts == tuple(
            range(site.starts[0], site.starts[0] + site.stride, cells)
        )

    def will_need(self) -> None:
        """Ask for the block to be read ahead."""
        size = itemsize(self.site.dtype)
        for start, count in self.extents:
            self.site.file.will_need(start * size, count * size)

    def read(self, buffer: Array) -> tuple[Array, int]:
        """Read the values to the front of a buffer.

        Returns where in it each layer starts, int64 (L,), and the distance of two sequences of a layer.
        """
        size, position = itemsize(self.site.dtype), 0
        for start, count in self.extents:
            self.site.file.read_into(start * size, buffer[position : position + count])
            position += count
        layers, sequences, cells = len(self.site.layers), self.last - self.first, self.end - self.begin
        if self._is_contiguous:
            return np.arange(layers) * cells, layers * cells
        return np.arange(layers) * sequences * cells, cells


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

    with ThreadPoolExecutor(len(states)) as pool:
        for block in blocks:
            block.will_need()
            waiting.append((block, pool.submit(call, block)))
            if len(waiting) > 2 * len(states):  # some are read ahead while others are worked on
                block, future = waiting.popleft()
                yield block, future.result()
        for block, future in waiting:
            yield block, future.result()
