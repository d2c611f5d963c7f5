"""8-bit values times a scale: of a block, a row, a group along the input, or the whole tensor.

- FP8 with a float32 `weight_scale_inv` for each block of 128 x 128, as DeepSeek-V3 (its inference/kernel.py,
  `weight_dequant`) and Qwen3-FP8 have them; the value is the weight times the scale, whatever its name says. Blocks at
  the edges may be cut. DeepSeek-V4 has powers of two as scales (`scale`), and experts of packed E2M1 in int8.
- compressed-tensors (`float-quantized`, `int-quantized`, `naive-quantized`) and FBGEMM, with `weight_scale`, and
  integers with `weight_zero_point` where they are not symmetric.
"""

from collections.abc import Mapping
from functools import partial
from math import ceil
from typing import Any

import torch

from outlier_features.errors import InputError
from outlier_features.quantized.mxfp4 import e2m1_pairs, e8m0
from outlier_features.quantized.weight import Entry, Stored, Tensor, Weight

_SCALES = ("_scale_inv", "_scale", ".scale", ".qscale_weight")
_FLOATS = ("F8_E4M3", "F8_E5M2")
_POWERS = ("F8_E8M0", "U8")
_OF_ACTIVATIONS = ("input_scale", "activation_scale", "input_zero_point")


def scaled(stored: Stored, settings: Mapping[str, Any]) -> dict[str, Weight]:
    """The quantized weights of a checkpoint, by name.

    Raises `InputError` where a value of 8 bits has no scale, or a scale does not fit.
    """
    block = settings.get("weight_block_size")
    weights = {}
    for name in stored:
        entry = stored[name]
        if entry.dtype not in (*_FLOATS, "I8") or name.endswith("zero_point"):
            continue
        module = name.removesuffix(".weight")
        scale = next((one for one in _scale_names(name, module) if one in stored), None)
        if scale is None:
            raise InputError(f"{name} holds 8-bit values without a scale, expected {name}_scale_inv or {name}_scale")
        parts = {"weight": name, "scale": scale}
        if f"{name}_zero_point" in stored:
            parts["zero_point"] = f"{name}_zero_point"
        parts |= {role: f"{module}.{role}" for role in _OF_ACTIVATIONS if f"{module}.{role}" in stored}
        pairs = entry.dtype == "I8" and stored[scale].dtype in _POWERS
        shape = (*entry.shape[:-1], entry.shape[-1] * (2 if pairs else 1))
        height, width = _block(name, shape, stored[scale], block)
        group = _called(height, width, shape)
        weights[name] = Weight(shape, 4 if pairs else 8, group, parts, partial(_decode, pairs, height, width, shape))
    return weights


def _scale_names(name: str, module: str) -> list[str]:
    return [(name if ending.startswith("_") else module) + ending for ending in _SCALES]


def _grid(scale: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """The shape of scales with as many axes as their weight: one a tensor, a row or an expert may have fewer."""
    return (*scale, *[1] * (axes - len(scale)))


def _block(name: str, shape: tuple[int, ...], scale: Entry, block: Any) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    grid = _grid(scale.shape, len(shape))
    if len(grid) == len(shape) >= 2 and all(one in (1, size) for one, size in zip(grid[:-2], shape[:-2], strict=True)):
        (rows, columns), (down, across) = shape[-2:], grid[-2:]
        if block and (down, across) == (ceil(rows / block[0]), ceil(columns / block[1])):
            return block[0], block[1]
        if down and across and not rows % down and not columns % across:
            return rows // down, columns // across
    raise InputError(
        f"{name} is of shape {list(shape)} and its scale of shape {list(scale.shape)}, expected a scale for each "
        + (f"block of {block[0]} x {block[1]}" if block else "block, row or tensor")
    )


def _called(height: int, width: int, shape: tuple[int, ...]) -> str:
    if (height, width) == shape[-2:]:
        return "tensor"
    if height == 1:
        return "row" if width == shape[-1] else str(width)
    return f"{height} x {width}"


def _decode(
    pairs: bool, height: int, width: int, shape: tuple[int, ...], parts: Mapping[str, Tensor], dtype: torch.dtype
) -> Tensor:
    scale = parts["scale"]
    scale = e8m0(scale) if scale.dtype in (torch.uint8, torch.float8_e8m0fnu) else scale.float()
    outer, (rows, columns) = shape[:-2], shape[-2:]

    def spread(values: Tensor) -> Tensor:
        """A value of each block as one of each element, without the memory where rows or columns share it."""
        grid = values.reshape(_grid(tuple(values.shape), len(shape)))
        grid = grid if height >= rows else grid.repeat_interleave(height, -2)[..., :rows, :]
        grid = grid if width >= columns else grid.repeat_interleave(width, -1)[..., :columns]
        return grid.expand(*outer, *grid.shape[-2:]).reshape(-1, *grid.shape[-2:])

    stored = parts["weight"].view(-1, *parts["weight"].shape[-2:])
    out = torch.empty(shape, dtype=dtype)
    scales = spread(scale)
    zeros = spread(parts["zero_point"].float()) if "zero_point" in parts else None
    for number, matrix in enumerate(out.view(-1, rows, columns)):
        values = e2m1_pairs(stored[number]) if pairs else stored[number].float()
        if zeros is not None:
            values -= zeros[number]
        matrix.copy_(values.mul_(scales[number]))
    return out
