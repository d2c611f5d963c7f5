"""safetensors files as memory maps and as streams, without torch.

The safetensors library copies what it slices and cannot write a tensor piece by piece; both matter here, where a file
is larger than memory. The format (8 bytes of header length, a JSON header, the data) is described at
https://github.com/huggingface/safetensors#format.

Files written here carry checksums in their metadata: the seal, over the length and the header, is compared whenever a
file is opened; `crc32`, of each tensor's bytes in the order in which they lie, only on request
(`TensorFile.damaged_tensors`). And `written_as` is the file's name, since the files of a job share their provenance and
may be mistaken for each other.
"""

import json
import math
import mmap
import os
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar

import numpy as np

from outlier_features.errors import DamagedFile, InputError
from outlier_features.files.artifacts import PROVENANCE, Provenance, replacing
from outlier_features.files.reserve import reserve
from outlier_features.files.seal import BLANK, MARK, require_seal, sealed

_NUMPY: dict[str, type[np.generic]] = {
    "C64": np.complex64, "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip
# numpy has no bfloat16 and no 8-bit floats, so their bits stand in for them.
_BITS: dict[str, type[np.generic]] = {
    "BF16": np.uint16, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "F8_E8M0": np.uint8, "F8_E4M3FNUZ": np.uint8,
    "F8_E5M2FNUZ": np.uint8,
}  # fmt: skip
STORAGE = _NUMPY | _BITS
_BIT_WIDTHS = {name: 8 * np.dtype(dtype).itemsize for name, dtype in STORAGE.items()}
_BIT_WIDTHS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # values that share bytes
# Floats, as they are called.
DTYPES: dict[str, str] = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
NUMPY_NAMES = {np.dtype(dtype): name for name, dtype in _NUMPY.items()}
_MAX_HEADER = 100_000_000
_CHECKSUMS, _NAME = "crc32", "written_as"
_AT_ONCE = 1 << 22
_MOST_OPEN = 256  # at a time; each takes two descriptors, of which a process may often have no more than 1,024


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: `dtype` as the format names it, `offset` in bytes from the start of the file.

    `dtype` may be one that a later version of the format has; only the values of such a tensor cannot be had.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class _Opened:
    """The descriptor of a file and, once it is asked for, its map; closed when nobody refers to them any more."""

    def __init__(self, path: Path, identity: tuple[int, ...]):
        with path.open("rb") as file:
            if _identity(file.fileno()) != identity:
                raise DamagedFile(path, "has changed since its header was read")
            self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)

    @cached_property
    def map(self) -> mmap.mmap:
        return mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ)


class TensorFile:
    """A safetensors file, checked against its own header, and mapped into memory when its values are asked for.

    Any number of them may be at hand: only the last 256 that were opened are open. Raises `InputError` where the file
    is missing, truncated or not safetensors, or its header is not as it was written.
    """

    _open_files: ClassVar["deque[weakref.ref[TensorFile]]"] = deque()
    _kind: ClassVar[str] = "safetensors"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._identity = _identity(file.fileno())
                self.size = os.fstat(file.fileno()).st_size
                self.entries, self.metadata = self._read_header(file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedFile(path, f"expected a whole {self._kind} file, found {error}") from error
        self._opened: _Opened | None = None

    def _read_header(self, file: BinaryIO) -> tuple[dict[str, Entry], dict[str, str]]:
        return _read_header(file.read, self.size)

    def _open(self) -> _Opened:
        """Who uses what this returns must hold on to it: this file may be closed for one that another thread opens."""
        opened = self._opened
        if opened is None:
            try:
                self._opened = opened = _Opened(self.path, self._identity)
            except OSError as error:
                raise DamagedFile(self.path, f"could be read before, and now cannot: {error.strerror}") from error
            self._open_files.append(weakref.ref(self))
            while len(self._open_files) > _MOST_OPEN:
                oldest = self._open_files.popleft()()
                if oldest is not None and oldest is not self:
                    oldest._opened = None
        return opened

    @property
    def map(self) -> mmap.mmap:
        """The whole file. Raises `MemoryError` where there is no address space for it."""
        try:
            return self._open().map
        except OSError as error:
            raise MemoryError(f"no address space of {self.size} bytes for {self.path}") from error

    @property
    def provenance(self) -> Provenance:
        """What a file written here says of its origin.

        Raises `InputError` where it was written by another program or as another file.
        """
        if MARK not in self.metadata:
            raise DamagedFile(self.path, "its metadata has no checksum, expected a file that this workflow wrote")
        if (name := self.metadata.get(_NAME)) != _name(self.path):
            raise DamagedFile(self.path, f"was written as {name}")
        try:
            return Provenance(self.path, self.metadata[PROVENANCE])
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedFile(self.path, f"its metadata names no {PROVENANCE}") from error

    def damaged_tensors(self, progress: Callable[[int], object] = lambda size: None) -> list[str]:
        """Names of the tensors whose bytes do not have the checksum that was recorded when they were written.

        Reads the whole file; `progress` is called with the bytes done. Raises `InputError` where none were recorded.
        """
        recorded = self.metadata.get(_CHECKSUMS, "").split()
        if len(recorded) != len(self.entries):
            raise DamagedFile(self.path, f"names {len(recorded)} checksums for {len(self.entries)} tensors")
        damaged = []
        for (name, entry), expected in zip(self.entries.items(), recorded, strict=True):
            found = 0
            for start in range(entry.offset, entry.offset + entry.nbytes, _AT_ONCE):
                stop = min(start + _AT_ONCE, entry.offset + entry.nbytes)
                with memoryview(self.map) as view, view[start:stop] as piece:
                    found = zlib.crc32(piece, found)
                self.drop(start, stop - start)
                progress(stop - start)
            if f"{found:08x}" != expected:
                damaged.append(name)
        return damaged

    def entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise DamagedFile(self.path, f"has no tensor {name!r}")
        return self.entries[name]

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """The tensor `name` where it lies (bfloat16 and 8-bit floats as their bits in uint16 and uint8).

        Raises `InputError` where its dtype is unknown or its values share bytes.
        """
        entry = self.entry(name)
        if entry.dtype not in STORAGE:
            raise InputError(f"{self.path}: {name} is {entry.dtype}, expected one of {', '.join(STORAGE)}")
        return np.ndarray(entry.shape, STORAGE[entry.dtype], self.map, entry.offset)

    def copy(self, name: str) -> np.ndarray[Any, Any]:
        """The tensor `name` as `array` has it, in memory of its own: a map takes address space as large as the file,
        which a process may not have for a model's weights."""
        entry = self.entry(name)
        values = np.empty(entry.shape, STORAGE[entry.dtype])
        if values.size:
            self.read_into(entry.offset, values)
        return values

    def read_into(self, offset: int, target: np.ndarray[Any, Any]) -> None:
        """Fill an array with the bytes from `offset` on.

        Where bytes are looked at once, copying them is cheaper than mapping their pages and giving them back.
        """
        view, opened = target.data.cast("B"), self._open()
        while len(view):
            count = os.preadv(opened.descriptor, [view], offset)
            if not count:
                raise DamagedFile(self.path, f"found its end at byte {offset}, expected {self.size} bytes as before")
            view, offset = view[count:], offset + count

    def will_need(self, offset: int, length: int) -> None:
        """Ask for bytes to be read ahead, if they do not seem to be in the page cache.

        Asking costs as much as faulting them in, page by page, even where there is nothing to read.
        """
        if length and not (self._is_cached(offset) and self._is_cached(offset + length - 1)):
            self._advise(mmap.MADV_WILLNEED, offset, offset + length)

    def _is_cached(self, offset: int) -> bool:
        opened = self._open()
        try:
            return os.preadv(opened.descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
        except OSError:  # it would wait, or the file system cannot say
            return False

    def drop(self, offset: int, length: int) -> None:
        """Give back the pages of these bytes; they stay in the page cache, but not in our memory."""
        if self._opened is not None and "map" in vars(self._opened):
            self._advise(mmap.MADV_DONTNEED, offset, offset + length)

    def _advise(self, advice: int, start: int, stop: int) -> None:
        start -= start % mmap.PAGESIZE
        if stop > start:
            self.map.madvise(advice, start, min(stop, self.size) - start)


def _identity(descriptor: int) -> tuple[int, ...]:
    """What tells an open file from one that took its name, or was written anew."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read_header(read: Any, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    prefix = read(8)
    length = int.from_bytes(prefix, "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise ValueError(f"{size} bytes, too few for its header")
    text = read(length)
    header = json.loads(text)
    metadata = header.pop("__metadata__", {})
    if MARK in metadata:
        require_seal(prefix + text)
    entries, spans = {}, []
    for name, fields in header.items():
        start, stop = fields["data_offsets"]
        dtype, shape = fields["dtype"], tuple(fields["shape"])
        if not isinstance(dtype, str) or not all(isinstance(number, int) for number in (*shape, start, stop)):
            raise ValueError(f"tensor {name!r} of dtype {dtype!r} and shape {list(shape)}")
        if _bits(dtype, shape) not in (None, 8 * (stop - start)) or min(shape, default=0) < 0:
            raise ValueError(f"tensor {name!r} of {dtype} and shape {list(shape)} in {stop - start} bytes")
        entries[name] = Entry(dtype, shape, 8 + length + start, stop - start)
        spans.append((start, stop, name))
    end = 0
    for start, stop, name in sorted(spans):  # the format leaves no holes; a writer that broke off may
        if start != end:
            raise ValueError(f"tensor {name!r} begins at byte {start} of the data, where {end} bytes are taken")
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"{size} bytes, but its tensors end at byte {8 + length + end}")
    return entries, metadata


def _bits(dtype: str, shape: tuple[int, ...]) -> int | None:
    """The size of a tensor; None where the dtype is unknown."""
    return math.prod(shape) * _BIT_WIDTHS[dtype] if dtype in _BIT_WIDTHS else None


def _name(path: str | Path) -> str:
    """A file's name; of a chunk's, which is named by its sequences, with that of its directory."""
    parts = Path(path).absolute().parts
    return "/".join(parts[-2:] if parts[-1][0].isdecimal() else parts[-1:])


def _field(name: str, value: str) -> bytes:
    """A field as it stands in the text of a header."""
    return f"{json.dumps(name)}: {json.dumps(value)}".encode()


class _Checksum:
    """CRC-32 of a tensor whose rows come one after the other; None if they do not."""

    def __init__(self) -> None:
        self.value: int | None = 0
        self._row = 0

    def add(self, row: int, rows: int, data: memoryview) -> None:
        self.value = zlib.crc32(data, self.value) if row == self._row and self.value is not None else None
        self._row += rows


class TensorFileWriter:
    """Writes a safetensors file whose tensors arrive in pieces, in any order.

    `tensors` gives dtype and shape of each; `write(name, row, data)` puts `data` at index `row` of the first axis.
    The space of the whole file is taken when the block begins: raises `OSError`, with the bytes that it needs and those
    that are free, before anything is computed that would not fit. The file takes its name only when the block ends
    without an error and every byte was written.
    """

    def __init__(
        self, path: str | Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], provenance: Mapping[str, Any]
    ):
        self._path, self._replacing = path, replacing(path)
        self._sums = {name: _Checksum() for name in tensors}
        metadata = {
            PROVENANCE: json.dumps(provenance),
            _NAME: _name(path),
            _CHECKSUMS: " ".join(BLANK for _ in tensors),
            MARK: BLANK,
        }
        header: dict[str, Any] = {"__metadata__": metadata}
        sizes = {name: math.prod(shape) * np.dtype(STORAGE[dtype]).itemsize for name, (dtype, shape) in tensors.items()}
        position = 0
        for name, (dtype, shape) in tensors.items():
            stop = position + sizes[name]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
            position = stop
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % mmap.PAGESIZE)  # data that starts on a page is quicker to map
        self._header = len(text).to_bytes(8, "little") + text
        self._entries = {
            name: Entry(dtype, shape, len(self._header) + header[name]["data_offsets"][0], sizes[name])
            for name, (dtype, shape) in tensors.items()
        }
        self._missing = position

    def __enter__(self) -> "TensorFileWriter":
        self._file = self._replacing.__enter__().open("w+b", buffering=0)
        try:
            reserve(self._file.fileno(), len(self._header) + self._missing, self._path)
            self._put(self._header, 0)
        except BaseException as failure:
            self.__exit__(type(failure), failure, failure.__traceback__)
            raise
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
        self._sums[name].add(row, len(data), view)
        self._put(view, offset)

    def _put(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        while len(view):  # a disk that fills up takes a part
            written = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[written:], offset + written

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._missing:
                    raise ValueError(f"{self._missing} bytes were never written")
                self._seal()
        except BaseException as failure:
            self._file.close()
            self._replacing.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._file.close()
        self._replacing.__exit__(kind, error, trace)

    def _seal(self) -> None:
        """Put the checksums into the header, over the zeros that hold their place."""
        blank = " ".join(BLANK for _ in self._sums)
        sums = " ".join(f"{self._checksum(name):08x}" for name in self._sums)
        header = self._header.replace(_field(_CHECKSUMS, blank), _field(_CHECKSUMS, sums), 1)
        self._put(sealed(header), 0)

    def _checksum(self, name: str) -> int:
        found, entry = self._sums[name].value, self._entries[name]
        if found is None:  # rows came in another order, so they are read again
            found, stop = 0, entry.offset + entry.nbytes
            for start in range(entry.offset, stop, _AT_ONCE):
                found = zlib.crc32(os.pread(self._file.fileno(), min(_AT_ONCE, stop - start), start), found)
        return found


def write_tensors(path: str | Path, arrays: Mapping[str, np.ndarray[Any, Any]], provenance: Mapping[str, Any]) -> None:
    """Write whole numpy arrays as one safetensors file."""
    tensors = {name: (NUMPY_NAMES[array.dtype], array.shape) for name, array in arrays.items()}
    with TensorFileWriter(path, tensors, provenance) as writer:
        for name, array in arrays.items():
            if array.size:
                writer.write(name, 0, array)


def was_asked(path: Path, key: str) -> bool:
    """Whether the passes that left a file were to do what a key of its provenance names; no where there is no file."""
    try:
        return bool(TensorFile(path).provenance.get(key))
    except (OSError, InputError):
        return False
