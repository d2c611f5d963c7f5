"""What makes a dim of the residual stream at a token, block by block."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from outlier_features.model.sites import Block
from outlier_features.origin.block_parts import block_parts, exact
from outlier_features.origin.expert_parts import split_mlp


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
