"""GPTQ: integers of 2, 3, 4 or 8 bits with a float16 scale and a zero point for each group of inputs.

The layout is that of AutoGPTQ and GPTQModel (https://github.com/ModelCloud/GPTQModel): `qweight` packs the inputs of
each output, `qzeros` the outputs of each group, and `g_idx` has each input's group, which is not in order where columns
were quantized by their activations. Version 1 of the format stores zero points minus one, `gptq_v2` as they are.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from outlier_features.errors import InputError
from outlier_features.quantized.packing import unpack
from outlier_features.quantized.weight import Stored, Tensor, Weight, bands, parts_of, require_setting, require_shape

_BITS = (2, 3, 4, 8)


def gptq(stored: Stored, settings: Mapping[str, Any]) -> dict[str, Weight]:
    """The quantized weights of a checkpoint, by name.

    Raises `InputError` where one is incomplete or laid out otherwise.
    """
    version = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    require_setting(settings, "checkpoint_format", version, ("gptq", "gptq_v2"))
    if settings.get("is_marlin_format"):
        raise InputError("is_marlin_format in quantization_config: found true, expected weights in the order of GPTQ")
    weights = {}
    for name in stored:
        if not name.endswith(".qweight"):
            continue
        module = name.removesuffix("qweight")
        parts = parts_of(stored, module, ("qweight", "qzeros", "scales"), ("g_idx",))
        if stored[name].dtype != "I32":
            raise InputError(f"{name} is of dtype {stored[name].dtype}, expected words of I32")
        words, outputs = stored[name].shape
        groups = stored[parts["scales"]].shape[0]
        # A layer may have bits of its own (`dynamic`), which the shapes tell.
        inputs = stored[parts["g_idx"]].shape[0] if "g_idx" in parts else words * 32 // int(settings["bits"])
        bits = words * 32 // inputs if inputs else 0
        if bits not in _BITS or words * 32 != bits * inputs:
            raise InputError(f"{name} has {words} words for {inputs} inputs, expected 2, 3, 4 or 8 bits for each")
        require_shape(stored, parts["scales"], (groups, outputs))
        require_shape(stored, parts["qzeros"], (groups, outputs * bits // 32))
        decode = partial(_decode, bits, inputs, 1 if version == "gptq" else 0)
        group = "row" if groups == 1 else str(-(-inputs // groups))
        weights[module + "weight"] = Weight((outputs, inputs), bits, group, parts, decode)
    return weights


def _decode(bits: int, inputs: int, shift: int, parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    scales = parts["scales"].float()
    zeros = unpack(parts["qzeros"].T, bits).T.float()
    if shift and bool((zeros == (1 << bits) - 1).any()):
        raise InputError(
            "found a zero point of all ones in checkpoint_format 'gptq', which its writers mean in different ways (0 "
            "minus one, with or without a borrow from the next), expected the model converted to 'gptq_v2' with the "
            "package gptqmodel"
        )
    zeros += shift
    groups = torch.arange(inputs) // -(-inputs // len(scales))
    groups = parts["g_idx"].long() if "g_idx" in parts else groups
    if int(groups.min()) < 0 or int(groups.max()) >= len(scales):
        raise InputError(f"g_idx goes from {int(groups.min())} to {int(groups.max())}, expected 0 to {len(scales) - 1}")
    outputs = scales.shape[1]
    out = torch.empty((outputs, inputs), dtype=dtype)
    for band in bands(outputs, inputs):
        codes = unpack(parts["qweight"][:, band], bits).float()
        out[band] = codes.sub_(zeros[groups, band]).mul_(scales[groups, band]).T
    return out
