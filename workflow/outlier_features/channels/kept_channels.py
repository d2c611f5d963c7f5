"""What is kept of the inputs of linear layers, channel by channel: it adds up over passes, blocks and chunks.

Of an input, which is named after the first layer that reads it, a file has tensors `{name}.{part}.{field}` for each
part of the positions (see `populations`) that it was read at; and of the neurons that a dense MLP's last layer reads
`{name}.token_absmax` float32 (n, T), the largest abs(x) of each token.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

import numpy as np

from outlier_features.files.tensorfile import TensorFile

Array = np.ndarray[Any, Any]
RECORDED = "channels_recorded"  # in a provenance: whether the passes were to record
INPUTS = "linear_inputs"  # of each input its block, site and the layers that read it
ABSENT = "absent_layers"  # by name, why nothing is known of a linear layer's input
TOKEN_ABSMAX = "token_absmax"


@dataclass(frozen=True)
class KeptChannels:
    """Of the W channels of an input at the positions of one part or of several; of E experts a row each, else one row.

    low, high   float32 (E, W), inf and -inf where nothing was read
    total       float64 (E, W), the sum
    squares     float64 (E, W), the sum of squares
    count       int64 (E,), how many vectors were read
    """

    low: Array
    high: Array
    total: Array
    squares: Array
    count: Array

    @classmethod
    def nothing(cls, experts: int, width: int) -> "KeptChannels":
        """experts   0 of an input that every token goes through"""
        shape = max(experts, 1), width
        extreme = np.full(shape, np.inf, np.float32)
        return cls(extreme, -extreme, np.zeros(shape), np.zeros(shape), np.zeros(shape[0], np.int64))

    @classmethod
    def read(cls, file: TensorFile, name: str, part: int) -> "KeptChannels | None":
        """What a file has; None where the input was not read at positions of the part."""
        if f"{name}.{part}.count" not in file.entries:
            return None
        return cls(*(file.array(f"{name}.{part}.{field.name}") for field in fields(cls)))

    def arrays(self, name: str, part: int) -> dict[str, Array]:
        """As they are named in a file."""
        return {f"{name}.{part}.{field.name}": getattr(self, field.name) for field in fields(self)}

    def add(self, expert: int, found: Array, count: int) -> None:
        """Add `count` vectors that a row reads: least and largest value, sum and sum of squares, float64 (4, W)."""
        low, high, total, squares = found
        np.minimum(self.low[expert], low.astype(np.float32), out=self.low[expert])
        np.maximum(self.high[expert], high.astype(np.float32), out=self.high[expert])
        self.total[expert] += total
        self.squares[expert] += squares
        self.count[expert] += count

    def __add__(self, other: "KeptChannels") -> "KeptChannels":
        return KeptChannels(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.total + other.total,
            self.squares + other.squares,
            self.count + other.count,
        )

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.squares).all())


def merged(files: Iterable[TensorFile], name: str, parts: Iterable[int]) -> KeptChannels | None:
    """What the files have of an input at the positions of these parts together; None where none has any."""
    found = [kept for part in parts for file in files if (kept := KeptChannels.read(file, name, part))]
    return reduce(KeptChannels.__add__, found) if found else None
