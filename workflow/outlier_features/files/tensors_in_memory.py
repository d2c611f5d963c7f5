"""Tensors that lie in memory as they would in a file, to be read like one."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from outlier_features.files.tensorfile import STORAGE, Entry, TensorFile


class TensorsInMemory(TensorFile):
    """Values that are written to and read from as `TensorFileWriter` and `TensorFile` have it, and never on a disk.

    name      for messages
    tensors   dtype and shape of each
    """

    def __init__(self, name: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]]):
        self.path, self.metadata, self.entries, self.size = Path(name), {}, {}, 0
        for tensor, (dtype, shape) in tensors.items():
            nbytes = math.prod(shape) * np.dtype(STORAGE[dtype]).itemsize
            self.entries[tensor] = Entry(dtype, shape, self.size, nbytes)
            self.size += nbytes
        self._bytes = np.zeros(self.size, np.uint8)

    @property
    def map(self) -> memoryview:  # type: ignore[override]
        return self._bytes.data.toreadonly()

    def write(self, name: str, row: int, data: np.ndarray[Any, Any]) -> None:
        """Put `data` (of the tensor's dtype or its bits) at index `row` of the first axis."""
        entry = self.entries[name]
        if data.shape[1:] != entry.shape[1:] or row + len(data) > entry.shape[0]:
            raise ValueError(f"{name}: rows {row}.. of shape {data.shape} do not fit {entry.shape}")
        values = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        begin = entry.offset + row * (entry.nbytes // entry.shape[0])
        self._bytes[begin : begin + values.size] = values

    def read_into(self, offset: int, target: np.ndarray[Any, Any]) -> None:
        view = target.reshape(-1).view(np.uint8)
        view[:] = self._bytes[offset : offset + view.size]

    def will_need(self, offset: int, length: int) -> None:
        """They are there."""

    def drop(self, offset: int, length: int) -> None:
        """They stay until others are written in their place."""
