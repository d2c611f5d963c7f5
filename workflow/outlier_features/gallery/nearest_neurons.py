"""Neurons whose activations go together, by the cosine over the positions of a run."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
MOST = 4096  # neurons that are compared with one another
NEAREST = 5


class NearestNeurons:
    """The cosines of n neurons, from one sequence after the other; they take n x n float64."""

    def __init__(self, neurons: int):
        self._products = np.zeros((neurons, neurons))

    def add(self, values: Array) -> None:
        """The activations at the positions of a sequence, float32 (T, n)."""
        exact = values.astype(np.float64)
        self._products += exact.T @ exact

    def nearest(self) -> list[list[tuple[int, float]]]:
        """For each neuron the others with the largest cosines, the largest first; of equal ones the first neuron's.

        One that is 0 at every position has none, and is none's.
        """
        lengths = np.sqrt(self._products.diagonal())
        there = lengths > 0
        scale = np.where(there, lengths, 1.0)
        cosines = self._products / scale[:, None] / scale
        found: list[list[tuple[int, float]]] = []
        for own, row in enumerate(cosines):
            others = [int(one) for one in np.argsort(-row, kind="stable") if there[one] and one != own]
            found.append([(one, float(row[one])) for one in others[:NEAREST]] if there[own] else [])
        return found
