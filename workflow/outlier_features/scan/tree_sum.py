"""A sum over sequences whose last bit does not depend on how the sequences come together."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class TreeSum:
    """Adds up arrays of sequences, which come in the order of their numbers in the run.

    A *node* is 2**k sequences from a multiple of 2**k on; its sum is that of its first half plus that of its second.
    So it has one order of additions, whatever chunk has which sequences. Kept are the fewest nodes that make up the
    sequences so far: two at most for each power of two.
    """

    def __init__(self) -> None:
        self._nodes: list[tuple[int, int, Array]] = []

    def add(self, first: int, size: int, values: Array) -> None:
        """The node of `size` sequences from `first` on, which follow those before."""
        node = values.copy()
        while self._nodes and self._nodes[-1][1] == size and first // size % 2:
            first, _, before = self._nodes.pop()
            node += before
            size *= 2
        self._nodes.append((first, size, node))

    @property
    def nodes(self) -> Array:
        """First sequence and number of sequences of each node, int64 (K, 2)."""
        return np.array([node[:2] for node in self._nodes], np.int64).reshape(-1, 2)

    def sums(self, axis: int) -> Array:
        """The sums of the nodes, along a new axis."""
        return np.stack([node for *_, node in self._nodes], axis)
