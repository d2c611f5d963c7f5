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
from outlier_features.files.tensorfile import Entry
from outlier_features.quantized.mxfp4 import e2m1_pairs, e8m0
from outlier_features.quantized.weight import Stored, Tensor, Weight, bands

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
        if f"{name}_g_idx" in stored:
            raise InputError(
                f"found {name}_g_idx, which orders its inputs by their activations, expected groups in order"
            )
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
    stored, outer, (rows, columns) = parts["weight"], shape[:-2], shape[-2:]
    scale = parts["scale"]
    scales = e8m0(scale) if scale.dtype in (torch.uint8, torch.float8_e8m0fnu) else scale.float()
    grids = [scales, parts["zero_point"].float()] if "zero_point" in parts else [scales]
    # A matrix for each expert, or only one; and of each as many rows and columns as there are blocks.
    grids = [grid.reshape(_grid(tuple(grid.shape), len(shape))) for grid in grids]
    grids = [grid.expand(*outer, *grid.shape[-2:]).reshape(-1, *grid.shape[-2:]) for grid in grids]
    out = torch.empty(shape, dtype=dtype)
    for number, matrix in enumerate(out.view(-1, rows, columns)):
        codes = stored.view(-1, *stored.shape[-2:])[number]
        for band in bands(rows, columns, height):
            values = e2m1_pairs(codes[band]) if pairs else codes[band].float()
            scale, *zeros = (_spread(grid[number], band, height, width, columns) for grid in grids)
            for zero in zeros:
                values -= zero
            matrix[band] = values.mul_(scale)
    return out


def _spread(grid: Tensor, band: slice, height: int, width: int, columns: int) -> Tensor:
    """The value of each element's block, for a band of rows that begins with a block."""
    down = grid[band.start // height : ceil(band.stop / height)]
    down = down.repeat_interleave(height, 0)[: band.stop - band.start]
    return down if width >= columns else down.repeat_interleave(width, 1)[:, :columns]
