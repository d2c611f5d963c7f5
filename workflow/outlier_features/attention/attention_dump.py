"""Attention patterns, projection weights and labels in safetensors files that other programs wrote."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outlier_features.errors import InputError
from outlier_features.files.artifacts import read_json
from outlier_features.files.tensorfile import TensorFile

Array = np.ndarray[Any, Any]
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class LayerTensor:
    """A layer's tensor where it lies in a file, (N, ...): `{key}.{layer}`, or a layer of the one tensor (N, L, ...)."""

    file: TensorFile
    name: str
    array: Array

    @classmethod
    def find(cls, file: TensorFile, key: str, layer: int, axes: tuple[str, ...]) -> "LayerTensor":
        """`axes` names the axes after N (and L), as in ("T", "H")."""
        name = key if key in file.entries else f"{key}.{layer}"
        rest = ", ".join(axes)
        shapes = f"{key} (N, L, {rest}) or {key}.{layer} (N, {rest})"
        if name not in file.entries:
            raise InputError(f"{file.path}: has neither {key} nor {name}, expected {shapes}")
        array, dtype = file.array(name), file.entries[name].dtype
        if array.ndim != len(axes) + (2 if name == key else 1) or dtype not in _FLOATS or not array.size:
            raise InputError(f"{file.path}: {name} is {dtype} {list(array.shape)}, expected floats, {shapes}")
        if name == key:
            if layer >= array.shape[1]:
                raise InputError(f"{file.path}: {key} has {array.shape[1]} layers, expected layer {layer} among them")
            array = array[:, layer]
        return cls(file, name, array)

    def sequence(self, n: int) -> Array:
        """Sequence n, float32."""
        return as_float32(self.array[n], self.file.entries[self.name].dtype)


def dump_pattern(tensor: LayerTensor, n: int) -> Array:
    """The pattern of sequence n, float32 (heads, T, T), or (heads, T, T + 1) with a learned sink.

    Raises `InputError` where it is none: not square, below zero, or with rows that sum to more than 1.
    """
    pattern = tensor.sequence(n)
    where = f"{tensor.file.path}: {tensor.name}, sequence {n}"
    if pattern.shape[2] - pattern.shape[1] not in (0, 1):
        raise InputError(f"{where}: found shape {list(pattern.shape)}, expected (heads, T, T) or (heads, T, T + 1)")
    total = pattern.sum(axis=-1, dtype=np.float64)
    if not np.isfinite(pattern).all() or pattern.min() < 0 or total.max() > 1.02:
        raise InputError(
            f"{where}: found values from {pattern.min():.3g} and rows that sum to as much as {total.max():.4g}, "
            "expected probabilities whose rows, over the last axis, sum to 1"
        )
    return pattern


def layer_weight(file: TensorFile, key: str, layer: int, axes: int) -> Array:
    """A weight of a layer, float32: the tensor `key`, in which `{layer}` stands for the layer's index.

    A tensor with one axis more than the weight's `axes` has a weight for each layer.
    """
    name = key.replace("{layer}", str(layer))
    entry, array = file.entry(name), file.array(name)
    if array.ndim == axes + 1 and layer < array.shape[0]:
        array = array[layer]
    if array.ndim != axes or entry.dtype not in _FLOATS:
        expected = "[out, in] or [layers, out, in]" if axes == 2 else "[out] or [layers, out]"
        raise InputError(
            f"{file.path}: {name} is {entry.dtype} {list(entry.shape)}, expected floats of shape {expected} for layer "
            f"{layer}"
        )
    return as_float32(array, entry.dtype)


def as_float32(array: Array, dtype: str) -> Array:
    """Values of a tensor of format `dtype`; numpy holds bfloat16 as its bits."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def read_labels(file: TensorFile, labels: str, n: int, length: int) -> list[str]:
    """The labels of the positions of sequence n.

    `labels` is a tensor of integers in `file`, (N, T) or (T,), or else a file: JSON with a list for all sequences or
    one for each, or text with a label a line. Raises `InputError` where they are not `length`.
    """
    found: Any
    if labels in file.entries:
        array = file.array(labels)
        if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
            raise InputError(f"{file.path}: {labels} has shape {list(array.shape)}, expected integers (N, T) or (T,)")
        found = array.tolist()
    elif not Path(labels).is_file():
        raise InputError(f"labels: {labels} is neither a tensor in {file.path} nor a file")
    elif labels.endswith(".json"):
        found = read_json(labels)
    else:
        found = Path(labels).read_text(encoding="utf-8").splitlines()
    if isinstance(found, list) and found and all(isinstance(row, list) for row in found):
        found = found[n] if n < len(found) else []
    if not isinstance(found, list):
        raise InputError(f"{labels}: expected a list of labels, or of lists of them")
    if len(found) != length:
        raise InputError(f"{labels}: found {len(found)} labels for sequence {n}, expected {length}, one a position")
    return [str(one) for one in found]
