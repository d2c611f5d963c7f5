"""compressed-tensors' `pack-quantized`: integers of 4 or 8 bits in int32 words along the input, with a scale a group.

The layout is that of https://github.com/vllm-project/compressed-tensors, compressors/pack_quantized: `weight_packed`
(out, in * bits / 32) holds the values plus half of their range, `weight_shape` what they were, `weight_scale`
(out, groups), `weight_zero_point` packed down the outputs where they are not symmetric, `weight_g_idx` each input's
group.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from outlier_features.errors import InputError
from outlier_features.quantized.packing import unpack
from outlier_features.quantized.scaled import scaled
from outlier_features.quantized.weight import Stored, Tensor, Weight, bands, parts_of, require_setting, require_shape

_SCALED = ("float-quantized", "int-quantized", "naive-quantized")


def compressed(stored: Stored, settings: Mapping[str, Any]) -> dict[str, Weight]:
    """The quantized weights of a compressed-tensors checkpoint, by name. Raises `InputError`."""
    require_setting(settings, "format", settings.get("format"), (*_SCALED, "pack-quantized"))
    if settings["format"] == "pack-quantized":
        return _packed(stored)
    # Several groups of layers may have blocks of their own size.
    groups = (settings.get("config_groups") or {}).values()
    blocks = [(group.get("weights") or {}).get("block_structure") for group in groups]
    block = next((one for one in blocks if one), None)
    return scaled(stored, {**settings, "weight_block_size": block})


def _packed(stored: Stored) -> dict[str, Weight]:
    weights = {}
    for name in stored:
        if not name.endswith(".weight_packed"):
            continue
        module = name.removesuffix("packed")
        parts = parts_of(stored, module, ("packed", "scale", "shape"), ("zero_point", "g_idx"))
        rows, columns = (int(size) for size in stored.read(parts["shape"]).tolist())
        words = stored[name].shape[-1]
        bits = words * 32 // columns if columns else 0
        if bits not in (4, 8) or -(-columns * bits // 32) != words or stored[name].shape[0] != rows:
            raise InputError(
                f"{name} is of shape {list(stored[name].shape)}, expected a weight of shape {[rows, columns]} in 4 or "
                "8 bits"
            )
        groups = stored[parts["scale"]].shape[-1]
        require_shape(stored, parts["scale"], (rows, groups))
        group = "row" if groups == 1 else str(columns // groups)
        decode = partial(_decode, bits, (rows, columns))
        weights[module.removesuffix("_")] = Weight((rows, columns), bits, group, parts, decode)
    return weights


def _decode(bits: int, shape: tuple[int, int], parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    rows, columns = shape
    half = 1 << (bits - 1)
    scales = parts["scale"].float()
    groups = torch.arange(columns) // (columns // scales.shape[1])
    if "g_idx" in parts and int(parts["g_idx"].min()) >= 0:  # -1 where the order is the natural one
        groups = parts["g_idx"].long()
    # Half the range is what is added to both, so that it goes where there are zero points.
    zeros = unpack(parts["zero_point"], bits)[:rows].float() if "zero_point" in parts else torch.full_like(scales, half)
    out = torch.empty(shape, dtype=dtype)
    for band in bands(rows, columns):
        codes = unpack(parts["packed"][band].T, bits).T[:, :columns].float()
        out[band] = codes.sub_(zeros[band][:, groups]).mul_(scales[band][:, groups])
    return out
