"""The tables that rule prune_experts writes."""

import polars as pl

from outlier_features.files.score_columns import SCORES, VARIANT, scores_by_sequence
from outlier_features.files.tables import Column, Table

EXPERT_ABLATION = Table(
    "expert_ablation",
    "variant of the model: which experts write nothing, and how well it then predicts the sample; no row where rule "
    "super_expert names none",
    (
        VARIANT,
        Column("target", pl.String, "`baseline` (nothing), `expert` (super experts) or `random`"),
        Column("rule", pl.String, "the rule that found the super experts; null for `random`"),
        Column("site", pl.String, "`expert_out`, which is set to zero at all positions"),
        Column("layers", pl.String, "block of each expert, joined by `+`"),
        Column("experts", pl.String, "the experts, joined by `+`; `shared` is the shared one"),
        Column("number", pl.UInt32, "experts that write nothing", "experts"),
        Column("seed", pl.UInt32, "of a random draw; null otherwise"),
        Column("positions", pl.String, "where: `all`"),
        Column("value", pl.String, "`zero`"),
        *SCORES,
    ),
)  # fmt: skip

EXPERT_ABLATION_SEQUENCES = scores_by_sequence("expert_ablation")
