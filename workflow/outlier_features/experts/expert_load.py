"""How a router spreads positions over the experts of its block."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from outlier_features.experts.experts_schema import EXPERT_BALANCE, EXPERT_LOAD
from outlier_features.populations import EXCLUDED, POPULATIONS, REST

COUNTS = {"layer": pl.UInt16, "expert": pl.UInt16, "of": pl.UInt8, "chosen": pl.Int64, "weight": pl.Float64}


@dataclass(frozen=True)
class LoadCounts:
    """Of a block with so many experts: how many positions of each part chose each, and the sum of their weights.

    chosen, weight   (2, experts), a row for each part of the positions (`populations`)
    """

    chosen: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    weight: np.ndarray[tuple[int, int], np.dtype[np.float64]]

    @classmethod
    def of(cls, experts: int) -> "LoadCounts":
        return cls(np.zeros((2, experts), np.int64), np.zeros((2, experts)))

    def add(self, expert: int, parts: np.ndarray[tuple[int], np.dtype[np.uint8]], weight: torch.Tensor) -> None:
        """Positions of these parts (n,) chose the expert, with these weights (n,)."""
        self.chosen[:, expert] += np.bincount(parts, minlength=2)
        self.weight[:, expert] += np.bincount(parts, weight.cpu().double().numpy(), minlength=2)

    def rows(self, layer: int) -> pl.DataFrame:
        """A row of `COUNTS` for each expert and part."""
        parts, experts = self.chosen.shape
        return pl.DataFrame(
            {
                "layer": np.full(parts * experts, layer),
                "expert": np.tile(np.arange(experts), parts),
                "of": np.repeat((EXCLUDED, REST), experts),
                "chosen": self.chosen.ravel(),
                "weight": self.weight.ravel(),
            },
            schema=COUNTS,
        )


def load_rows(counts: pl.DataFrame, positions: Mapping[str, int]) -> pl.DataFrame:
    """The rows of `EXPERT_LOAD` from those of `COUNTS`.

    positions   by population of the run, how many were counted
    """
    if counts.is_empty():
        return pl.DataFrame(schema=EXPERT_LOAD.schema)
    of_layer = ("population", "layer")
    found = [
        counts.filter(pl.col("of").is_in(list(POPULATIONS[population])))
        .group_by("layer", "expert", maintain_order=True)
        .agg(pl.col("chosen", "weight").sum())
        .sort("layer", "expert")
        .with_columns(population=pl.lit(population), share=_ratio(pl.col("chosen"), pl.lit(size)))
        for population, size in positions.items()
    ]
    rows = pl.concat(found).with_columns(
        load=_ratio(pl.col("chosen"), pl.col("chosen").mean().over(of_layer)),
        mean_weight=_ratio(pl.col("weight"), pl.col("chosen")),
        weight_share=_ratio(pl.col("weight"), pl.col("weight").sum().over(of_layer)),
    )
    return EXPERT_LOAD.cast(rows)


def balance_rows(load: pl.DataFrame, positions: Mapping[str, int]) -> pl.DataFrame:
    """The rows of `EXPERT_BALANCE` from those of `EXPERT_LOAD`."""
    p = pl.col("chosen") / pl.col("chosen").sum()
    entropy = -pl.when(p > 0).then(p * p.log()).otherwise(0.0).sum() / pl.len().cast(pl.Float64).log()
    rows = load.group_by("population", "layer", maintain_order=True).agg(
        experts=pl.len(),
        experts_per_position=pl.col("share").sum(),
        never_chosen=(pl.col("chosen") == 0).sum(),
        largest_load=pl.col("load").max(),
        largest_expert=pl.col("expert").get(pl.col("chosen").arg_max()),
        entropy=pl.when(pl.len() > 1, pl.col("chosen").sum() > 0).then(entropy),
    )
    sizes = pl.DataFrame({"population": list(positions), "positions": list(positions.values())})
    joined = rows.join(sizes, on="population", how="left", maintain_order="left")
    nothing = pl.col("positions") == 0
    empty = [pl.when(~nothing).then(pl.col(name)).alias(name) for name in ("experts_per_position", "largest_expert")]
    return EXPERT_BALANCE.cast(joined.with_columns(empty))


def _ratio(one: pl.Expr, other: pl.Expr) -> pl.Expr:
    """Null where it would be of nothing."""
    return pl.when(other != 0).then(one / other)
