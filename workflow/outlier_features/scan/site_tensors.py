"""Where a site's activations lie in a file, whichever way they are laid out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import Entry, TensorFile

Array = np.ndarray[Any, Any]

FORMATS = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class SiteTensors:
    """A site's activations in a file: per present layer a (N, T, H) view.

    `starts` are the layers' positions in `raw` and `stride` the distance of two sequences, in values; so one tensor per
    layer and one stacked (N, L, T, H) tensor look alike.
    """

    file: TensorFile
    site: str
    dtype: str
    layers: tuple[int, ...]
    shape: tuple[int, int, int]
    starts: tuple[int, ...]
    stride: int

    @classmethod
    def per_layer(cls, file: TensorFile, site: str) -> "SiteTensors | None":
        """The tensors `{site}.{layer}` of a file; None if it has none."""
        entries: dict[int, Entry] = {}
        for name, entry in file.entries.items():
            stem, _, index = name.rpartition(".")
            if stem == site and index.isdecimal() and len(index) < 10:
                if int(index) in entries:
                    raise InputError(f"{file.path}: {name} is not the only tensor of its layer, expected one")
                entries[int(index)] = entry
        if not entries:
            return None
        layers = tuple(sorted(entries))
        first = entries[layers[0]]
        for layer in layers:
            if (entries[layer].shape, entries[layer].dtype) != (first.shape, first.dtype) or len(first.shape) != 3:
                raise InputError(
                    f"{file.path}: {site}.{layer} is {entries[layer].dtype} {list(entries[layer].shape)}, "
                    f"expected (sequences, tokens, dims) alike in all layers"
                )
        _require_float(file, site, first)
        size = itemsize(first.dtype)
        starts = tuple(entries[layer].offset // size for layer in layers)
        n, t, h = first.shape
        return cls(file, site, first.dtype, layers, (n, t, h), starts, t * h)

    @classmethod
    def stacked(cls, file: TensorFile, key: str) -> "SiteTensors":
        """The tensor `key` of shape (N, L, T, H)."""
        entry = file.entry(key)
        if len(entry.shape) != 4:
            raise InputError(f"{file.path}: {key} has shape {list(entry.shape)}, expected (N, L, T, H)")
        _require_float(file, key, entry)
        n, layers, t, h = entry.shape
        first = entry.offset // itemsize(entry.dtype)
        starts = tuple(first + layer * t * h for layer in range(layers))
        return cls(file, key, entry.dtype, tuple(range(layers)), (n, t, h), starts, layers * t * h)

    def rows(self, first: int, last: int) -> "SiteTensors":
        """Sequences from `first` to before `last`."""
        n, t, h = self.shape
        if not 0 <= first < last <= n:
            raise ValueError(f"sequences {first} to {last} of {n}")
        return replace(
            self, shape=(last - first, t, h), starts=tuple(start + first * self.stride for start in self.starts)
        )

    @property
    def raw(self) -> Array:
        """The whole file as uint32 (float32) or uint16 (16-bit formats)."""
        size = itemsize(self.dtype)
        return np.ndarray((self.file.size // size,), f"u{size}", self.file.map)

    def sequence(self, layer: int, n: int) -> Array:
        """Sequence n of the layer at index `layer` of `layers`, float32 (T, H)."""
        _, t, h = self.shape
        start = self.starts[layer] + n * self.stride
        return widened(self.raw[start : start + t * h], self.dtype).reshape(t, h)

    def advise(self, advice: Callable[[int, int], None], start: int, stop: int) -> None:
        """Call `advice(offset, length)` on the bytes of sequences start..stop."""
        size, length = itemsize(self.dtype), (stop - start) * self.stride * itemsize(self.dtype)
        first, *others = self.starts
        advice((first + start * self.stride) * size, length)
        if others and others[0] - first >= self.stride:  # the layers of a sequence do not lie side by side
            for other in others:
                advice((other + start * self.stride) * size, length)


def itemsize(dtype: str) -> int:
    return 4 if dtype == "F32" else 2


def widened(bits: Array, dtype: str) -> Array:
    """The float32 values of raw bits: of float32 where they lie, of 16-bit formats a copy."""
    if dtype == "F32":
        return bits.view(np.float32)
    # Not at the top: who asks only for shapes, as every start of Snakemake does, need not wait for numba.
    from outlier_features.scan import scan_kernel as kernel

    out = np.empty(bits.size, np.float32)
    (kernel.widen_bfloat16 if dtype == "BF16" else kernel.widen_float16)(bits, out)
    return out


def _require_float(file: TensorFile, name: str, entry: Entry) -> None:
    if entry.dtype not in FORMATS:
        raise InputError(f"{file.path}: {name} is {entry.dtype}, expected one of {', '.join(FORMATS)}")
    if entry.offset % itemsize(entry.dtype):
        raise InputError(f"{file.path}: {name} does not start at a multiple of its item size")
