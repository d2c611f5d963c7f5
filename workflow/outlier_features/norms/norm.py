"""A norm of a model, and its gain."""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
PARAMETERIZATION = {0: "w", 1: "1 + w"}


@dataclass(frozen=True)
class Gain:
    """The gain of a norm, `offset + stored`: a model may store what is added to 1 (offset 1) or the gain (offset 0).

    stored   floats of any shape, without rounding
    dtype    in which the file holds them, where that is known
    """

    stored: Array
    offset: int = 0
    dtype: str | None = None

    @property
    def effective(self) -> Array:
        """The gain in float64, flat."""
        return self.offset + self.stored.astype(np.float64).reshape(-1)

    @property
    def exactly_one(self) -> int:
        """How many are exactly 1, told by what is stored, for a sum with 1 rounds."""
        return int((self.stored == 1 - self.offset).sum())


@dataclass(frozen=True)
class Norm:
    """A norm of a model that was run, or one whose gain a dump holds.

    module             path in the model
    sites              that its output is, by `find_sites`
    layer              index of the block that it lies in
    residual           its dims are those of the residual stream
    kind               `rms` (root mean square) or `layer` (the mean is taken off first); None if undecided
    parameterization   `w`, `1 + w`, `none` (it has no gain), or None if undecided, with a `reason`
    size               values of its gain; of a norm without one, values that are normalised together
    shape              of its gain
    tensor             name in the checkpoint of the tensor with these very values, None if there is none
    bias_max_abs       largest abs(bias), None without a bias
    """

    module: str
    sites: tuple[str, ...]
    layer: int | None
    residual: bool
    kind: str | None
    parameterization: str | None
    reason: str | None
    size: int
    shape: tuple[int, ...] | None
    tensor: str | None = None
    gain: Gain | None = None
    bias_max_abs: float | None = None
