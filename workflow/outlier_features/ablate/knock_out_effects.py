"""Each knock-out beside what is then left of massive activations."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from outlier_features.dim_marks import Sentence, dim_mark
from outlier_features.wording import count, some

Row = Mapping[str, Any]
NAMED = 4
# By target, the site of what a sublayer adds to the residual stream.
SUBLAYERS = {"attention": "attn_out", "mixer": "mixer_out", "mlp": "mlp_out"}
_NOUNS = {"attention": "attention", "mixer": "the mixer", "mlp": "the MLP"}


def knock_out_effects(knock_outs: pl.DataFrame, dims: pl.DataFrame) -> list[dict[str, Any]]:
    """The rows of `knock_outs`, each with `massive`: a row of `knock_out_dims` for every dim that is followed, the
    largest first, in the layer where its mean is largest in the unchanged model; `share` is mean / unchanged_mean.

    A dim without a massive token in the sample is left out.
    """
    ranked = (
        dims.drop_nulls(["dim", "unchanged_mean"])
        .sort(pl.col("unchanged_mean").abs(), "layer", descending=[True, False])
        .unique(["variant", "dim"], keep="first", maintain_order=True)
        .with_columns(share=pl.col("mean") / pl.col("unchanged_mean"))
    )
    of_variant: dict[int, list[dict[str, Any]]] = {}
    for row in ranked.iter_rows(named=True):
        of_variant.setdefault(row.pop("variant"), []).append(row)
    return [row | {"massive": of_variant.get(row["variant"], [])} for row in knock_outs.rows(named=True)]


def blocks_of(effect: Row) -> list[int]:
    return [*map(int, (effect["layers"] or "").split("+"))] if effect["layers"] else []


def knocked_out(effect: Row) -> Sentence:
    """What was changed, in words."""
    blocks = blocks_of(effect)
    if effect["target"] in _NOUNS:
        noun = _NOUNS[effect["target"]]
        where = f"layer {blocks[0]}" if len(blocks) == 1 else f"all {count(len(blocks), 'layer')}"
        return Sentence(f"{noun} of {where}")
    if effect["target"] == "head":
        return Sentence(f"head {effect['head']} of layer {blocks[0]}")
    dims = effect["dims"].split("+")
    if effect["target"] == "massive_tokens":
        return Sentence(f"{'dimension' if len(dims) == 1 else 'dimensions'} {some([*map(dim_mark, dims)], NAMED)}")
    if len(dims) == 1:
        return Sentence(f"weight W_down[{dim_mark(dims[0])}, {effect['cols']}] of layer {blocks[0]}")
    return Sentence(f"all {len(dims)} super weights")
