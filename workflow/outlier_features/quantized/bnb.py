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
from outlier_features.quantized.weight import Stored, Tensor, Weight, parts_of, require_shape

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
        state = json.loads(bytes(stored.tensor(state_name).tolist()))
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
    return parts["weight"].float().mul_(parts["SCB"].float()[:, None]).div_(127).to(dtype)


def _decode_blocks(
    shape: tuple[int, ...],
    block: int,
    nested: tuple[int, float] | None,
    parts: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> Tensor:
    codes = parts[""].flatten()
    values = parts[".quant_map"].float()[torch.stack([codes >> 4, codes & 15], dim=-1).flatten().long()][: prod(shape)]
    largest = parts[".absmax"]
    if nested:
        size, offset = nested
        scales = parts[".nested_absmax"].float().repeat_interleave(size)[: len(largest)]
        largest = parts[".nested_quant_map"].float()[largest.long()] * scales + offset
    return (values * largest.float().repeat_interleave(block)[: prod(shape)]).view(shape).to(dtype)
