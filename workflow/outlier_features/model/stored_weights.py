"""The weights of a checkpoint, read one at a time: no file is mapped, and nothing but the tensor asked for is held."""

import mmap
from collections.abc import Iterator
from pathlib import Path

import torch

from outlier_features.errors import DamagedFile, InputError
from outlier_features.files.tensorfile import Entry, TensorFile
from outlier_features.model.model_files import model_files

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
}  # fmt: skip
_LINE = 64  # bytes


class StoredWeights:
    """A checkpoint in safetensors files.

    bytes_read   of all tensors that were read so far
    """

    def __init__(self, files: list[TensorFile]):
        self._files = {name: file for file in files for name in file.entries}
        self.bytes_read = 0

    @classmethod
    def open(cls, location: Path) -> "StoredWeights":
        """The checkpoint in a model's directory; raises `InputError` where it has none, or a file is damaged."""
        names = [file.name for file in location.iterdir() if file.is_file()] if location.is_dir() else []
        chosen = model_files(names, lambda name: (location / name).read_text(encoding="utf-8"), str(location))
        return cls([TensorFile(location / name) for name in chosen if name.endswith(".safetensors")])

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Entry:
        """The header of a tensor."""
        if name not in self._files:
            raise InputError(f"its weights lack {name}")
        return self._files[name].entry(name)

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(self[name].nbytes for name in self)

    @property
    def files(self) -> list[Path]:
        return list(dict.fromkeys(file.path for file in self._files.values()))

    def shape(self, name: str) -> tuple[int, ...]:
        return self[name].shape

    def dtype(self, name: str) -> torch.dtype:
        dtype = self[name].dtype
        if dtype not in _DTYPES:
            raise DamagedFile(self._files[name].path, f"has {name} as {dtype}, expected one of {', '.join(_DTYPES)}")
        return _DTYPES[dtype]

    def read(self, name: str) -> torch.Tensor:
        """The tensor, in memory of its own."""
        entry, path = self[name], self._files[name].path
        # As far from a cache line's beginning as in a map of the file: products differ by that in their last bit.
        lead = entry.offset % _LINE
        memory = mmap.mmap(-1, lead + max(entry.nbytes, 1))  # which is given back whole, unlike some of malloc's
        bits = torch.frombuffer(memory, dtype=torch.uint8)[lead : lead + entry.nbytes]
        with path.open("rb", buffering=0) as file:
            file.seek(entry.offset)
            view, done = memoryview(memory)[lead : lead + entry.nbytes], 0
            while done < entry.nbytes:
                if not (count := file.readinto(view[done:])):
                    raise DamagedFile(path, f"ends within {name}")
                done += count
        self.bytes_read += entry.nbytes
        return bits.view(self.dtype(name)).reshape(entry.shape)
