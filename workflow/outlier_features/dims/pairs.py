"""What the selection rules ask: hits as (sequence, dim) pairs, with every reading of layer share and position share."""

import polars as pl

from outlier_features.detect.hits_schema import PAIR_COUNTS


def counts_of(hits: pl.DataFrame) -> pl.DataFrame:
    """The columns of `PAIR_COUNTS` for each (sequence, dim) with a hit.

    hits   sequence, layer, site (index), token, dim, value: the rule's hits of one population
    """
    tensor = pl.col("layer").cast(pl.UInt32) * 16 + pl.col("site").cast(pl.UInt32)
    return (
        hits.group_by("sequence", "dim")
        .agg(
            blocks_hit=pl.col("layer").n_unique(),
            tensors_hit=tensor.n_unique(),
            positions_hit=pl.col("token").n_unique(),
            occurrences=pl.len(),
            positive=(pl.col("value") > 0).sum(),
            first_layer=pl.col("layer").min(),
            last_layer=pl.col("layer").max(),
            max_abs=pl.col("value").abs().max(),
        )
        .select("sequence", "dim", *(pl.col(name).cast(dtype) for name, (dtype, _, _) in PAIR_COUNTS.items()))
    )


def pairs_of(counts: pl.DataFrame, positions: pl.DataFrame, blocks: int, site_tensors: int) -> pl.DataFrame:
    """Every reading of the shares for each (sequence, dim) with a hit.

    counts         sequence, dim and the columns of `PAIR_COUNTS`
    positions      sequence, positions: of the population
    blocks         of the model
    site_tensors   (site, block) tensors that the model has, over the rule's sites

    `affected` needs no loop over tensors: the shares of the tensors with a hit add up to occurrences / positions.
    """
    return (
        counts.join(positions, on="sequence", how="left")
        .select(
            "sequence",
            "dim",
            blocks=pl.col("blocks_hit") / blocks,
            sites_share=pl.col("tensors_hit") / site_tensors,
            union=pl.col("positions_hit") / pl.col("positions"),
            pooled=pl.col("occurrences") / (pl.col("positions") * site_tensors),
            affected=pl.col("occurrences") / (pl.col("positions") * pl.col("tensors_hit")),
            occurrences="occurrences",
            locations="positions_hit",
            positive="positive",
            first_layer="first_layer",
            last_layer="last_layer",
            max_abs="max_abs",
        )
        .sort("sequence", "dim")
    )
