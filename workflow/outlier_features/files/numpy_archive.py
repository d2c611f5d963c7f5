"""Files of tensors that other programs wrote: safetensors, and numpy's .npz, read where its arrays lie.

An .npz file is a zip file of .npy files, whose format is `numpy.lib.format`'s: a header that is a Python literal, then
the values. What `numpy.savez` writes lies there as it is; nothing is unpickled, and nothing is decompressed, since that
would take the file's whole size in memory.
"""

import math
import os
import struct
from pathlib import Path
from typing import BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import NUMPY_NAMES, Entry, TensorFile

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a member of a zip file; its name and an extra field follow
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def open_tensors(path: str | Path) -> TensorFile:
    """A safetensors or, by its name, an .npz file. Raises `InputError`."""
    return NumpyArchive(path) if Path(path).suffix == ".npz" else TensorFile(path)


class NumpyArchive(TensorFile):
    """An .npz file, whose arrays are read as a safetensors file's tensors are; where they begin is not aligned.

    Raises `InputError` where the file is missing, cut or no .npz, and, once it is asked for, of an array that is
    compressed, of Python objects or in Fortran order.
    """

    _kind = ".npz"

    def _read_header(self, file: BinaryIO) -> tuple[dict[str, Entry], dict[str, str]]:
        self._refused: dict[str, str] = {}
        entries: dict[str, Entry] = {}
        try:
            for member in ZipFile(file).infolist():
                name = member.filename.removesuffix(".npy")
                if name in entries:
                    raise ValueError(f"two arrays {name!r}")
                entries[name] = self._entry_of(name, member, file)
        except (BadZipFile, EOFError, struct.error) as error:
            raise ValueError(error) from error
        return entries, {}

    def _entry_of(self, name: str, member: ZipInfo, file: BinaryIO) -> Entry:
        if member.compress_type != ZIP_STORED or member.flag_bits & 1:
            self._refused[name] = "is compressed, expected an array as `numpy.savez` writes it"
            return Entry("?", (), 0, 0)
        file.seek(member.header_offset)
        mark, *lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        start = file.seek(sum(lengths), os.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        if mark != b"PK\x03\x04" or version not in _READERS:
            raise ValueError(f"an array {name!r} of .npy's version {version}")
        shape, fortran, dtype = _READERS[version](file)
        offset, nbytes = file.tell(), math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            self._refused[name] = "has Python objects, expected numbers"
        elif start + member.file_size != offset + nbytes or offset + nbytes > self.size:
            raise ValueError(f"an array {name!r} of {dtype} and shape {list(shape)} in {member.file_size} bytes")
        elif fortran and len(shape) > 1:
            self._refused[name] = "is in Fortran order, expected C order (`numpy.ascontiguousarray`)"
        known = dtype.isnative and dtype in NUMPY_NAMES
        return Entry(NUMPY_NAMES[dtype] if known else str(dtype), shape, offset, nbytes)

    def entry(self, name: str) -> Entry:
        if name in self._refused:
            raise InputError(f"{self.path}: {name} {self._refused[name]}")
        return super().entry(name)
