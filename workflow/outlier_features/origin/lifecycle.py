"""What makes a dim of the residual stream, block by block: what was there, what each part adds, what is left.

The parts of a block add up to its output. Where a norm closes a sum (post-LN), what the norm changes is a part of its
own; where a block multiplies what attention and the MLP return before it adds them, the parts are what it adds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from outlier_features.errors import InputError
from outlier_features.model.sites import Block
from outlier_features.model.verify_sites import TOLERANCE

Tensor = torch.Tensor
SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


@dataclass(frozen=True)
class Part:
    """What a part of a block adds to the residual stream at a token, float64 (H,).

    name   resid_pre, attn_out, norm_after_attn, mlp_out, norm_after_mlp; `block` is all that a block adds whose
           attn_out or mlp_out was not found
    """

    name: str
    value: Tensor


def block_parts(index: int, block: Block, rows: Mapping[str, Tensor]) -> list[Part]:
    """The parts of a block at one token, the first of them `resid_pre`; they sum to `resid_post`.

    rows   the block's sites of `SITES`, (H,) each, in the model's dtype and on its device

    Raises `InputError` where they do not sum to it within rounding.
    """
    pre, post = rows["resid_pre"], rows["resid_post"]
    if "attn_out" not in rows or "mlp_out" not in rows:
        return [Part("resid_pre", _exact(pre)), Part("block", _exact(post) - _exact(pre))]
    if block.closing_norm is not None and "mlp_norm" in block.sites:
        parts, expected = _post_norm_parts(block, rows), _exact(post)
        allowed = TOLERANCE[pre.dtype] * (expected.abs() + expected.square().mean().sqrt())
    else:
        parts, exactly = _added_parts(block, rows)
        size = torch.stack([part.value.abs() for part in parts]).sum(0)
        allowed = (2 * torch.finfo(pre.dtype).eps if exactly else TOLERANCE[pre.dtype]) * size
    difference = (torch.stack([part.value for part in parts]).sum(0) - _exact(post)).abs()
    if not bool((difference <= allowed).all()):
        raise InputError(
            f"sites: {' + '.join(part.name for part in parts)} of block {index} differs from its resid_post by "
            f"{float(difference.max()):.3g}, expected equality within rounding; what else {block.path} adds to the "
            "residual stream is not known, set `trace_origin.dims: []` to trace nothing"
        )
    return parts


def _post_norm_parts(block: Block, rows: Mapping[str, Tensor]) -> list[Part]:
    """Post-LN: resid_mid = norm(resid_pre + attn_out), resid_post = norm(resid_mid + mlp_out)."""
    assert block.closing_norm is not None
    with torch.inference_mode():
        after_attn = rows["resid_pre"] + rows["attn_out"]
        after_mlp = rows["resid_mid"] + rows["mlp_out"]
        normed_attn = block.sites["mlp_norm"].module(after_attn[None])[0]
        normed_mlp = block.closing_norm(after_mlp[None])[0]
    return [
        Part("resid_pre", _exact(rows["resid_pre"])),
        Part("attn_out", _exact(rows["attn_out"])),
        Part("norm_after_attn", _exact(normed_attn) - _exact(rows["resid_pre"]) - _exact(rows["attn_out"])),
        Part("mlp_out", _exact(rows["mlp_out"])),
        Part("norm_after_mlp", _exact(normed_mlp) - _exact(rows["resid_mid"]) - _exact(rows["mlp_out"])),
    ]


def _added_parts(block: Block, rows: Mapping[str, Tensor]) -> tuple[list[Part], bool]:
    """The parts where the outputs are added as they are, or multiplied by a number of the block; and whether as is."""
    pre, attn, mlp, post = (_exact(rows[name]) for name in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
    if "resid_mid" not in rows:
        return [Part("resid_pre", pre), Part("attn_out", attn), Part("mlp_out", mlp)], True
    mid, eps = _exact(rows["resid_mid"]), 2 * torch.finfo(rows["resid_pre"].dtype).eps
    scales = [_scale(before, out, after, eps) for before, out, after in ((pre, attn, mid), (mid, mlp, post))]
    parts = [Part("resid_pre", pre), Part("attn_out", scales[0] * attn), Part("mlp_out", scales[1] * mlp)]
    return parts, scales == [1.0, 1.0]


def _scale(before: Tensor, out: Tensor, after: Tensor, eps: float) -> float:
    """The number c in `after = before + c * out`: 1, or else a median over the dims with the larger half of |out|.

    Granite multiplies by `residual_multiplier`. A massive value's rounding must not decide c, so it is no mean.
    """
    if bool(((after - before - out).abs() <= eps * (before.abs() + out.abs())).all()):
        return 1.0
    large = (out.abs() >= out.abs().median()) & (out != 0)
    return float(((after - before)[large] / out[large]).median()) if bool(large.any()) else 1.0


def lifecycle_rows(
    dims: Sequence[int], blocks: Sequence[Block], rows: Sequence[Mapping[str, Tensor]]
) -> Iterator[dict[str, object]]:
    """For each dim and block, its parts and `resid_post`, at the token of `rows` (by block and site, (H,)).

    `share` is a part's share of what the block changes: attn_out, mlp_out and the norms sum to 1.
    """
    for layer, (block, tensors) in enumerate(zip(blocks, rows, strict=True)):
        pre, *added = block_parts(layer, block, tensors)
        post = _exact(tensors["resid_post"])
        change = torch.stack([part.value for part in added]).sum(0)
        for dim in dims:
            whole = float(change[dim])
            where: dict[str, object] = {"target_dim": dim, "layer": layer}
            yield {**where, "part": "resid_pre", "value": float(pre.value[dim]), "share": None}
            for part in added:
                value = float(part.value[dim])
                yield {**where, "part": part.name, "value": value, "share": value / whole if whole else None}
            yield {**where, "part": "resid_post", "value": float(post[dim]), "share": None}


def _exact(value: Tensor) -> Tensor:
    return value.cpu().double()
