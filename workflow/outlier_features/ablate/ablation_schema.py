"""The tables that rule ablate_dims writes."""

import polars as pl

from outlier_features.files.score_columns import SCORES, VARIANT, scores_by_sequence
from outlier_features.files.tables import Column, Table

ABLATION = Table(
    "ablation",
    "variant of the model: what was set where to which value, and how well it then predicts the sample",
    (
        VARIANT,
        Column("target", pl.String, "`baseline` (nothing), `dims` (selected), `weight` (super weights) or `random`"),
        Column("rule", pl.String, "the rule that selected the dims or found the weights; null for `random`"),
        Column("site", pl.String, "where dims are set; `mlp_down.weight` for weights"),
        Column("layers", pl.String, "block of each dim or weight, joined by `+`; null: in every block"),
        Column("dims", pl.String, "the dims, joined by `+`; of a weight, the row"),
        Column("cols", pl.String, "columns of the weights, joined by `+`"),
        Column("number", pl.UInt32, "dims or weights that are set", "dims or weights"),
        Column("seed", pl.UInt32, "of a random draw; null otherwise"),
        Column("positions", pl.String, "where: `excluded` (first of a sequence, special tokens), `rest` or `all`"),
        Column("value", pl.String, "`zero`, or `mean`: of each dim in the unchanged model over those positions"),
        *SCORES,
    ),
)  # fmt: skip

ABLATION_SEQUENCES: Table = scores_by_sequence("ablation")
