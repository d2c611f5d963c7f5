"""MXFP4: 4-bit floats E2M1, two in a byte, with a power of two for each 32 of them, as GPT-OSS has its experts.

The numbers are those of the OCP Microscaling Formats specification 1.0, sections 5.3.3 and 5.4.1
(https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf); the layout is that of
openai/gpt-oss: `<name>_blocks` (experts, out, groups, 16), the low half of a byte first, and `<name>_scales`
(experts, out, groups), for a weight (experts, in, out).
"""

from collections.abc import Mapping
from typing import Any

import torch

from outlier_features.quantized.weight import Stored, Tensor, Weight, bands, parts_of, require_shape

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def mxfp4(stored: Stored, settings: Mapping[str, Any]) -> dict[str, Weight]:
    """The quantized weights of a checkpoint, by name. Raises `InputError` where one is incomplete."""
    weights = {}
    for name in stored:
        if not name.endswith("_blocks"):
            continue
        prefix = name.removesuffix("blocks")
        parts = parts_of(stored, prefix, ("blocks", "scales"))
        *outer, rows, groups, half = stored[name].shape
        require_shape(stored, parts["scales"], (*outer, rows, groups))
        shape = (*outer, groups * half * 2, rows)
        weights[prefix.removesuffix("_")] = Weight(shape, 4, str(2 * half), parts, _decode)
    return weights


def e2m1_pairs(packed: Tensor) -> Tensor:
    """The two numbers in each byte, low half first, float32 with a last axis twice as long."""
    table = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
    codes = packed.view(torch.uint8)
    return table[torch.stack([codes & 15, codes >> 4], dim=-1).long()].flatten(-2)


def e8m0(exponents: Tensor) -> Tensor:
    """Powers of two with a bias of 127, float32; 255 is NaN."""
    exponents = exponents.view(torch.uint8)
    return torch.where(exponents == 255, torch.nan, (exponents.float() - 127).exp2())


def _decode(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    blocks, scales = parts["blocks"], parts["scales"]
    *outer, rows, groups, half = blocks.shape
    out = torch.empty((*outer, groups * half * 2, rows), dtype=dtype)
    for matrix, block, scale in zip(
        out.view(-1, *out.shape[-2:]), blocks.view(-1, rows, groups, half), scales.view(-1, rows, groups), strict=True
    ):
        for band in bands(rows, len(matrix)):
            matrix[:, band] = (e2m1_pairs(block[band]) * e8m0(scale[band])[..., None]).flatten(-2).T
    return out
