"""Values as the pages' scripts unpack them: few bytes each, in base64."""

import base64
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


def halves(values: Array) -> dict[str, Any]:
    """Values to three digits: 16-bit floats of them over `scale`, a power of two above all that are finite.

    NaN and infinities stay what they are.
    """
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if len(finite) else 0.0
    scale = 2.0 ** math.frexp(largest)[1] if largest else 1.0
    return {"scale": scale, "halves": _base64((values.astype(np.float64) / scale).astype("<f2"))}


def floats(values: ArrayLike) -> str:
    """32-bit floats; null is NaN."""
    return _base64(np.asarray(values, dtype="<f4"))


def integers(values: ArrayLike) -> str:
    """32-bit unsigned integers."""
    return _base64(np.asarray(values, dtype="<u4"))


def _base64(array: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
