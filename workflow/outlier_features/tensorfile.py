"""safetensors files as memory maps and as streams, without torch.

The safetensors library copies what it slices and cannot write a tensor piece by piece; both matter here, where a file
is larger than memory. The format (8 bytes of header length, a JSON header, the data) is described at
https://github.com/huggingface/safetensors#format.
"""

import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from outlier_features.artifacts import PROVENANCE, replacing
from outlier_features.errors import InputError

# numpy has no bfloat16 and no 8-bit floats, so their bits stand in for them.
STORAGE = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
    "BOOL": np.bool_, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in STORAGE.items() if name not in ("BF16", "F8_E4M3", "F8_E5M2")}
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: `dtype` as the format names it, `offset` in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(STORAGE[self.dtype]).itemsize


class TensorFile:
    """A safetensors file, mapped into memory and checked against its own header.

    Raises `InputError` where the file is missing, truncated or not safetensors.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                self.entries, self.metadata = _read_header(file.read, self.size)
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path}: expected a whole safetensors file, found {error}") from error

    @property
    def provenance(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.metadata[PROVENANCE]))
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{self.path}: its metadata names no {PROVENANCE}") from error

    def entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise InputError(f"{self.path}: has no tensor {name!r}")
        return self.entries[name]

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """The tensor `name` where it lies (bfloat16 as its bits in uint16)."""
        entry = self.entry(name)
        return np.ndarray(entry.shape, STORAGE[entry.dtype], self.map, entry.offset)

    def will_need(self, offset: int, length: int) -> None:
        """Ask for bytes to be read ahead, if they do not seem to be in the page cache.

        Asking costs as much as faulting them in, page by page, even where there is nothing to read.
        """
        if length and not (self._is_cached(offset) and self._is_cached(offset + length - 1)):
            self._advise(mmap.MADV_WILLNEED, offset, offset + length)

    def _is_cached(self, offset: int) -> bool:
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
            finally:
                os.close(descriptor)
        except OSError:  # it would wait, or the file system cannot say
            return False

    def drop(self, offset: int, length: int) -> None:
        """Give back the pages of these bytes; they stay in the page cache, but not in our memory."""
        self._advise(mmap.MADV_DONTNEED, offset, offset + length)

    def _advise(self, advice: int, start: int, stop: int) -> None:
        start -= start % mmap.PAGESIZE
        if stop > start:
            self.map.madvise(advice, start, min(stop, self.size) - start)


def _read_header(read: Any, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    length = int.from_bytes(read(8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise ValueError(f"{size} bytes, too few for its header")
    header = json.loads(read(length))
    metadata = header.pop("__metadata__", {})
    entries, spans = {}, []
    for name, fields in header.items():
        start, stop = fields["data_offsets"]
        if fields["dtype"] not in STORAGE:
            raise ValueError(f"tensor {name!r} of unsupported dtype {fields['dtype']}")
        entry = Entry(fields["dtype"], tuple(fields["shape"]), 8 + length + start)
        if stop - start != entry.nbytes or min(entry.shape, default=0) < 0:
            raise ValueError(f"tensor {name!r} of shape {list(entry.shape)} in {stop - start} bytes")
        entries[name] = entry
        spans.append((start, stop, name))
    end = 0
    for start, stop, name in sorted(spans):  # the format leaves no holes; a writer that broke off may
        if start != end:
            raise ValueError(f"tensor {name!r} begins at byte {start} of the data, where {end} bytes are taken")
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"{size} bytes, but its tensors end at byte {8 + length + end}")
    return entries, metadata


class TensorFileWriter:
    """Writes a safetensors file whose tensors arrive in pieces, in any order.

    `tensors` gives dtype and shape of each; `write(name, row, data)` puts `data` at index `row` of the first axis.
    The file takes its name only when the block ends without an error and every byte was written.
    """

    def __init__(
        self, path: str | Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], provenance: Mapping[str, Any]
    ):
        self._replacing = replacing(path)
        header: dict[str, Any] = {"__metadata__": {PROVENANCE: json.dumps(provenance)}}
        position = 0
        for name, (dtype, shape) in tensors.items():
            nbytes = Entry(dtype, shape, 0).nbytes
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
            position += nbytes
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % mmap.PAGESIZE)  # data that starts on a page is quicker to map
        self._header = len(text).to_bytes(8, "little") + text
        self._entries = {
            name: Entry(dtype, shape, len(self._header) + header[name]["data_offsets"][0])
            for name, (dtype, shape) in tensors.items()
        }
        self._missing = position

    def __enter__(self) -> "TensorFileWriter":
        self._file = self._replacing.__enter__().open("wb", buffering=0)
        self._file.write(self._header)
        self._file.truncate(len(self._header) + self._missing)
        return self

    def write(self, name: str, row: int, data: np.ndarray[Any, Any]) -> None:
        """Write `data` (contiguous, of the tensor's dtype or its bits) from index `row` of the first axis on."""
        entry = self._entries[name]
        expected = np.dtype(STORAGE[entry.dtype]).itemsize
        if data.shape[1:] != entry.shape[1:] or data.dtype.itemsize != expected or row + len(data) > entry.shape[0]:
            raise ValueError(f"{name}: rows {row}.. of shape {data.shape} do not fit {entry.dtype} {entry.shape}")
        view = np.ascontiguousarray(data).data.cast("B")
        offset = entry.offset + row * (entry.nbytes // entry.shape[0])
        self._missing -= len(view)
        while len(view):
            written = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[written:], offset + written

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and self._missing:
            kind, error = ValueError, ValueError(f"{self._missing} bytes were never written")
            self._replacing.__exit__(kind, error, None)
            raise error
        self._replacing.__exit__(kind, error, trace)


def write_tensors(path: str | Path, arrays: Mapping[str, np.ndarray[Any, Any]], provenance: Mapping[str, Any]) -> None:
    """Write whole numpy arrays as one safetensors file."""
    tensors = {name: (_NAMES[array.dtype], array.shape) for name, array in arrays.items()}
    with TensorFileWriter(path, tensors, provenance) as writer:
        for name, array in arrays.items():
            if array.size:
                writer.write(name, 0, array)
