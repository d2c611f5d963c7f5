"""bitsandbytes: 8-bit integers with a scale for each row (LLM.int8()), and the 4-bit codes nf4 and fp4 in blocks.

The layout is that of bitsandbytes (https://github.com/bitsandbytes-foundation/bitsandbytes, functional.py,
`QuantState.as_dict` and `int8_vectorwise_dequant`). 8 bits: `SCB` has the largest magnitude of each row, which 127
stands for. 4 bits: a table of 16 values (`quant_map`), the high half of a byte first, and the largest magnitude of each
block (`absmax`); with double quantization those are 8-bit codes themselves, in blocks of their own, about a mean.
"""

import json
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import torch

from outlier_features.errors import InputError
from outlier_features.quantized.weight import Stored, Tensor, Weight, bands, parts_of, require_shape

_STATE = ".quant_state.bitsandbytes__"
_NESTED = (".nested_absmax", ".nested_quant_map")


def bnb(stored: Stored, settings: Mapping[str, Any]) -> dict[str, Weight]:
    """The quantized weights of a checkpoint, by name. Raises `InputError` where one is incomplete."""
    weights = {}
    for name in stored:
        if name.endswith(".SCB"):
            module = name.removesuffix("SCB")
            parts = parts_of(stored, module, ("weight", "SCB"), ("weight_format",))
            shape = stored[parts["weight"]].shape
            require_shape(stored, name, shape[:1])
            weights[parts["weight"]] = Weight(shape, 8, "row", parts, _decode_rows)
        elif _STATE in name:
            weight = name[: name.index(_STATE)]
            weights[weight] = _four_bits(stored, weight, name)
    return weights


def _four_bits(stored: Stored, weight: str, state_name: str) -> Weight:
    parts = parts_of(stored, weight, ("", ".absmax", ".quant_map"), _NESTED) | {"state": state_name}
    try:
        state = json.loads(bytes(stored.read(state_name).tolist()))
        shape, block = tuple(int(size) for size in state["shape"]), int(state["blocksize"])
        nested = None
        if _NESTED[0] in parts:
            nested = int(state["nested_blocksize"]), float(state["nested_offset"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{state_name}: expected the state of a 4-bit weight, found {error!r}") from error
    if stored[weight].dtype != "U8" or 2 * prod(stored[weight].shape) != prod(shape) + prod(shape) % 2:
        found = f"{stored[weight].dtype} of shape {list(stored[weight].shape)}"
        raise InputError(f"{weight} is {found}, expected bytes with two values each of a weight of shape {list(shape)}")
    require_shape(stored, parts[".absmax"], (-(-prod(shape) // block),))
    return Weight(shape, 4, str(block), parts, partial(_decode_blocks, shape, block, nested))


def _decode_rows(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    weight, largest = parts["weight"], parts["SCB"].float()[:, None]
    out = torch.empty(weight.shape, dtype=dtype)
    for band in bands(*weight.shape):
        out[band] = weight[band].float().mul_(largest[band]).div_(127)
    return out


def _decode_blocks(
    shape: tuple[int, ...],
    block: int,
    nested: tuple[int, float] | None,
    parts: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> Tensor:
    codes, table, largest = parts[""].flatten(), parts[".quant_map"].float(), parts[".absmax"]
    if nested:
        size, offset = nested
        scales = parts[".nested_absmax"].float().repeat_interleave(size)[: len(largest)]
        largest = parts[".nested_quant_map"].float()[largest.long()] * scales + offset
    largest = largest.float()
    out = torch.empty(prod(shape), dtype=dtype)
    for band in bands(len(largest), block):
        some = out[band.start * block : band.stop * block]
        two = codes[band.start * block // 2 : -(-band.stop * block // 2)]
        values = table[torch.stack([two >> 4, two & 15], dim=-1).flatten().long()][: len(some)]
        some.copy_(values.mul_(largest[band].repeat_interleave(block)[: len(some)]))
    return out.view(shape)
