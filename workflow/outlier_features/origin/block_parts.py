"""What makes a dim of the residual stream, block by block: what was there, what each part adds, what is left.

The parts of a block add up to its output. Where a norm closes a sum (post-LN), what the norm changes is a part of its
own; where a block multiplies what attention and the MLP return before it adds them, the parts are what it adds. Of a
block that does yet something else, all that it adds is one part.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from outlier_features.model.sites import Block
from outlier_features.model.verify_sites import TOLERANCE

Tensor = torch.Tensor
OUTPUTS = ("attn_out", "mixer_out", "mlp_out")  # of the sublayers, in the order in which a block adds them
SITES_POST_NORM = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
SITES = (*SITES_POST_NORM, "mixer_out")


@dataclass(frozen=True)
class Part:
    """What a part of a block adds to the residual stream at a token, float64 (H,).

    name   resid_pre, one of `OUTPUTS`, norm_after_attn, norm_after_mlp; `block` is all that a block adds whose parts
           were not found, or do not sum to its output
    """

    name: str
    value: Tensor


def block_parts(block: Block, rows: Mapping[str, Tensor]) -> list[Part]:
    """The parts of a block at one token, the first of them `resid_pre`; they sum to `resid_post`.

    rows   the block's sites of `SITES`, (H,) each, in the model's dtype and on its device

    Where the outputs of its sublayers do not sum to `resid_post` within rounding, since the block does something else
    with them or adds what is no output of theirs, the parts are `resid_pre` and `block`.
    """
    pre, post = exact(rows["resid_pre"]), exact(rows["resid_post"])
    parts, allowed = _sublayers(block, rows)
    if len(parts) > 1:
        difference = (torch.stack([part.value for part in parts]).sum(0) - post).abs()
        if bool((difference <= allowed).all()):
            return parts
    return [Part("resid_pre", pre), Part("block", post - pre)]


def _sublayers(block: Block, rows: Mapping[str, Tensor]) -> tuple[list[Part], Tensor]:
    """`resid_pre` and what the sublayers that were found add to it, and by how much that may differ from the whole."""
    dtype = rows["resid_pre"].dtype
    if block.closing_norm is not None and rows.keys() >= set(SITES_POST_NORM) and "mlp_norm" in block.sites:
        post = exact(rows["resid_post"])
        return _post_norm_parts(block, rows), TOLERANCE[dtype] * (post.abs() + post.square().mean().sqrt())
    parts, exactly = _added_parts(rows)
    size = torch.stack([part.value.abs() for part in parts]).sum(0)
    return parts, (2 * torch.finfo(dtype).eps if exactly else TOLERANCE[dtype]) * size


def _post_norm_parts(block: Block, rows: Mapping[str, Tensor]) -> list[Part]:
    """Post-LN: resid_mid = norm(resid_pre + attn_out), resid_post = norm(resid_mid + mlp_out)."""
    assert block.closing_norm is not None
    with torch.inference_mode():
        after_attn = rows["resid_pre"] + rows["attn_out"]
        after_mlp = rows["resid_mid"] + rows["mlp_out"]
        normed_attn = block.sites["mlp_norm"].module(after_attn[None])[0]
        normed_mlp = block.closing_norm(after_mlp[None])[0]
    return [
        Part("resid_pre", exact(rows["resid_pre"])),
        Part("attn_out", exact(rows["attn_out"])),
        Part("norm_after_attn", exact(normed_attn) - exact(rows["resid_pre"]) - exact(rows["attn_out"])),
        Part("mlp_out", exact(rows["mlp_out"])),
        Part("norm_after_mlp", exact(normed_mlp) - exact(rows["resid_mid"]) - exact(rows["mlp_out"])),
    ]


def _added_parts(rows: Mapping[str, Tensor]) -> tuple[list[Part], bool]:
    """The outputs as they are added, or two of them multiplied by a number of the block; and whether as they are."""
    scales = scales_of(rows)
    parts = [Part("resid_pre", exact(rows["resid_pre"]))]
    parts += [Part(name, scale * exact(rows[name])) for name, scale in scales.items()]
    return parts, set(scales.values()) <= {1.0}


def scales_of(rows: Mapping[str, Tensor]) -> dict[str, float]:
    """By name of each sublayer's output, of `OUTPUTS`, the number that a block without a closing norm multiplies it by
    before it adds it.

    rows   the block's sites, all of one shape
    """
    pre, post = exact(rows["resid_pre"]), exact(rows["resid_post"])
    outputs = {name: exact(rows[name]) for name in OUTPUTS if name in rows}
    scales = dict.fromkeys(outputs, 1.0)
    if "resid_mid" in rows and len(outputs) == 2:
        mid, eps = exact(rows["resid_mid"]), 2 * torch.finfo(rows["resid_pre"].dtype).eps
        for (name, output), (before, after) in zip(outputs.items(), ((pre, mid), (mid, post)), strict=True):
            scales[name] = _scale(before, output, after, eps)
    return scales


def _scale(before: Tensor, out: Tensor, after: Tensor, eps: float) -> float:
    """The number c in `after = before + c * out`: 1, or else a median over the dims with the larger half of |out|.

    Granite multiplies by `residual_multiplier`. A massive value's rounding must not decide c, so it is no mean.
    """
    if bool(((after - before - out).abs() <= eps * (before.abs() + out.abs())).all()):
        return 1.0
    large = (out.abs() >= out.abs().median()) & (out != 0)
    return float(((after - before)[large] / out[large]).median()) if bool(large.any()) else 1.0


def exact(value: Tensor) -> Tensor:
    """A copy in float64 on the CPU."""
    return value.cpu().double()
