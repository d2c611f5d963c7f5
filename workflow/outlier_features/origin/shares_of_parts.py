"""What makes a dim of the residual stream, summed up to where it is largest; from table `lifecycle`, without torch."""

from typing import Any

import polars as pl

EMBEDDINGS, BETWEEN, ROUNDING = "embeddings", "between_blocks", "rounding"
ROUTED, SHARED = "routed_out", "shared_out"
_STREAM = ("resid_pre", "resid_post")


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
