"""What a file has of a tensor, and a weight that is held in several of them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import Entry

Tensor = torch.Tensor
_AT_ONCE = 1 << 20  # values


class Stored(Protocol):
    """The tensors of a checkpoint by name, as they lie in its files."""

    def __iter__(self) -> Iterator[str]: ...

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> Entry: ...

    def read(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Weight:
    """A quantized weight.

    shape    of the weight that it stands for
    bits     of each stored value
    group    which values share a scale: `128 x 128`, `32` (along the input), `row`, `tensor`
    parts    names of its tensors in the files, by role
    decode   from the parts to the weight in a dtype; each value is computed in float32 and rounded once
    """

    shape: tuple[int, ...]
    bits: int
    group: str
    parts: Mapping[str, str]
    decode: Callable[[Mapping[str, Tensor], torch.dtype], Tensor]


def bands(rows: int, columns: int, multiple: int = 1) -> Iterator[slice]:
    """Slices of rows, a multiple of so many each: what decoding takes besides the weight stays at some megabytes."""
    step = max(_AT_ONCE // max(columns, 1) // multiple, 1) * multiple
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def parts_of(stored: Stored, prefix: str, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, str]:
    """Names `prefix + role` by role. Raises `InputError` where a required one is not stored."""
    for role in required:
        if prefix + role not in stored:
            raise InputError(f"found {prefix}{required[0]} without {prefix}{role}, expected both")
    return {role: prefix + role for role in (*required, *optional) if prefix + role in stored}


def require_shape(stored: Stored, name: str, expected: tuple[int, ...]) -> None:
    """Raise `InputError` where a stored tensor is of another shape."""
    if stored[name].shape != expected:
        raise InputError(f"{name} is of shape {list(stored[name].shape)}, expected {list(expected)}")


def require_setting(settings: Mapping[str, object], key: str, found: object, allowed: tuple[object, ...]) -> None:
    """Raise `InputError` where a key of the checkpoint's quantization_config has a value that is not known here."""
    if found not in allowed:
        known = " or ".join(repr(value) for value in allowed)
        raise InputError(
            f"{key} in quantization_config: found {found!r} for {settings.get('quant_method')!r}, expected {known}"
        )
