"""The four classes of a sequence's positions in a block, and the populations made of them.

A position is excluded or not (the first one and special tokens, see `populations`), and its vector in resid_post of the
block has a high norm or not. Populations differ in few positions, so what adds up is kept by class.
"""

from typing import Any

import numpy as np

from outlier_features.neurons.neurons_schema import WITHOUT_HIGH_NORM
from outlier_features.populations import EXCLUDED, PADDING

Array = np.ndarray[Any, Any]
PADDED = -1
_EXCLUDED, _HIGH = 1, 2
CLASSES = range(4)
POPULATION_CLASSES = {
    "all": (0, 1, 2, 3),
    "without_first": (0, _HIGH),
    WITHOUT_HIGH_NORM: (0, _EXCLUDED),
}


def norms_of(stream: Array) -> Array:
    """The L2 norms, float64 (T,), of vectors (T, H)."""
    norms: Array = np.sqrt(np.square(stream, dtype=np.float64).sum(axis=1))
    return norms


def position_classes(parts: Array, norms: Array, high_norm: float) -> Array:
    """The class of each position of a sequence in a block, int64 (T,), or `PADDED`.

    parts       of the positions, see `populations`
    norms       float64 (T,), L2 norms of the block's output
    high_norm   a norm is high above so many times the median over the sequence's positions
    """
    own = parts != PADDING
    high = norms > high_norm * np.median(norms[own]) if own.any() else np.zeros(len(parts), bool)
    return np.where(own, _EXCLUDED * (parts == EXCLUDED) + _HIGH * high, PADDED).astype(np.int64)
