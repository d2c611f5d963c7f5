"""Scales that values are compared with, so that a threshold means the same in every model (docs/definitions.md).

A scaled hit is a value with abs(x) / s >= k. For the RMS of a position (`token_rms`) or of a layer (`layer_rms`) at
most 1 / k**2 of the values can be hits, as the squares of all x / s have the mean 1; so the hits are always listed. The
same holds of a norm's output over its gain (`gain`), were it not for biases: of a sequence with more hits none is kept.
"""

from dataclasses import dataclass

import numpy as np

from outlier_features.scan.statistics import Array

_SMALLEST_SHARE = 1 / 1000  # of the median abs(gain): below it, a gain hides its dim, and a ratio to it says little


@dataclass(frozen=True)
class Scale:
    """A scale and the smallest abs(x) / s that is listed.

    gains   of `gain` alone: float64 (L, H), NaN at dims that are left out
    """

    k: float
    gains: Array | None = None

    def most(self, values: Array) -> Array:
        """How many hits a sequence with so many values may have and be listed, int64."""
        if self.gains is None:
            return np.full(values.shape, np.iinfo(np.int64).max)
        return (np.maximum(1 / 9, 1 / self.k**2) * values).astype(np.int64)

    def gains_and_reach(self, layer: int, dims: int) -> tuple[Array, Array]:
        """Gains float64 (H,), and a float32 (H,) bound that no abs(x) of a hit is below if x is measured in units."""
        gains = np.ones(dims) if self.gains is None else self.gains[layer].astype(np.float64)
        with np.errstate(over="ignore", under="ignore"):
            reach = (self.k * np.abs(gains)).astype(np.float32)
        return gains, np.nextafter(reach, np.float32(0))

    def units(self, name: str, square: Array, positions: Array, dims: int) -> Array:
        """What a layer's values are measured in, float64 (B, 2) by part; NaN for each position's own RMS.

        square, positions   (B, 2), by part: sums of x**2 and numbers of positions
        """
        if name == "token_rms":
            return np.full(square.shape, np.nan)
        return layer_rms(square, positions, dims) if name == "layer_rms" else np.ones(square.shape)


def layer_rms(square: Array, positions: Array, dims: int) -> Array:
    """The smallest RMS, over the populations that they belong to, for positions of each part, float64 (..., 2)."""
    with np.errstate(invalid="ignore"):
        every = np.sqrt(square.sum(axis=-1) / (positions.sum(axis=-1) * dims))
        rest = np.sqrt(square[..., 1] / (positions[..., 1] * dims))
    return np.nan_to_num(np.stack([every, np.fmin(every, rest)], axis=-1))


def usable_gains(gains: Array) -> tuple[Array, dict[int, list[int]]]:
    """Gains (L, H) as float64 with NaN at the dims that are left out, and these dims by index of the layer.

    Left out are dims whose abs(gain) is 0 or under a thousandth of the layer's median. A layer without gains (NaN) has
    no dim to leave out.
    """
    usable = np.array(gains, np.float64)
    left_out: dict[int, list[int]] = {}
    for index, row in enumerate(usable):
        size = np.abs(row)
        if np.isfinite(row).all():
            small = (size < _SMALLEST_SHARE * np.median(size)) | (size == 0)
            if small.any():
                left_out[index] = np.flatnonzero(small).tolist()
            row[small] = np.nan
        else:
            row[:] = np.nan
    return usable, left_out
