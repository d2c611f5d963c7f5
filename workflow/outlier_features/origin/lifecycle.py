"""What makes a dim of the residual stream at a token: block by block, and summed up to where it is largest."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import torch

from outlier_features.model.sites import Block
from outlier_features.origin.block_parts import block_parts, exact
from outlier_features.origin.expert_parts import split_mlp

EMBEDDINGS, BETWEEN, ROUNDING = "embeddings", "between_blocks", "rounding"
_STREAM = ("resid_pre", "resid_post")


def lifecycle_rows(
    dims: Sequence[int], blocks: Sequence[Block], rows: Sequence[Mapping[str, torch.Tensor]]
) -> Iterator[dict[str, Any]]:
    """For each dim and block, its parts and `resid_post`, at the token of `rows` (by block and site, (H,)).

    `share` is a part's share of what the block changes: what attention, the MLP and the norms add sums to 1.
    """
    for layer, (block, tensors) in enumerate(zip(blocks, rows, strict=True)):
        pre, *parts = block_parts(block, tensors)
        added = [one for part in parts for one in (split_mlp(part, tensors) if part.name == "mlp_out" else [part])]
        post = exact(tensors["resid_post"])
        change = torch.stack([part.value for part in added]).sum(0)
        for dim in dims:
            whole = float(change[dim])
            where = {"target_dim": dim, "layer": layer}
            yield {**where, "part": "resid_pre", "value": float(pre.value[dim]), "share": None}
            for part in added:
                value = float(part.value[dim])
                yield {**where, "part": part.name, "value": value, "share": value / whole if whole else None}
            yield {**where, "part": "resid_post", "value": float(post[dim]), "share": None}


def largest_layer(life: pl.DataFrame) -> int:
    """The block after which `abs(x)` is largest, the first of several; rows of one dim of table `lifecycle`."""
    after = life.filter(part="resid_post").sort("layer")
    return int(after["layer"][after["value"].abs().arg_max()])  # type: ignore[index]


def shares_of_parts(life: pl.DataFrame) -> list[dict[str, Any]]:
    """What the embeddings and the parts of all blocks up to `largest_layer` write into a dim, with their `share` of the
    value there; `life`: rows of one dim of table `lifecycle`.

    What the model does to the stream between its blocks, and what the blocks' rounding sums up to, are parts too, so
    that all sum to the value.
    """
    last = largest_layer(life)
    rows = life.filter(pl.col("layer") <= last).sort("layer", maintain_order=True)
    before, after = (rows.filter(part=part)["value"].to_list() for part in _STREAM)
    sums = {EMBEDDINGS: before[0]}
    for part, value in rows.filter(~pl.col("part").is_in(_STREAM)).select("part", "value").rows():
        sums[part] = sums.get(part, 0.0) + value
    if between := sum(pre - post for pre, post in zip(before[1:], after[:-1], strict=True)):
        sums[BETWEEN] = between
    whole = after[-1]
    sums[ROUNDING] = whole - sum(sums.values())
    return [
        {"layer": last, "part": part, "value": value, "share": value / whole if whole else None}
        for part, value in sums.items()
    ]
