"""The table that rule rate_triggers writes."""

import polars as pl

from outlier_features.files.columns import DIM
from outlier_features.files.tables import Column, Table

TRIGGERS = Table(
    "triggers",
    "dim with a massive activation, class of token: how often a token of the class has one, over the whole run",
    (
        DIM,
        Column("token_class", pl.String, "`first` (of its sequence), `special`, `newline`, `space`, `punctuation`, "
               "`number`, `function word` (of English), `word` (begins one), `piece` (of one) or `other`"),
        Column("tokens", pl.Int64, "positions of the class, whatever the dim", "positions"),
        Column("massive", pl.Int64, "of them, those with a massive activation of the dim in any layer", "positions"),
        Column("rate", pl.Float64, "massive / tokens", "share"),
        Column("max_abs", pl.Float64, "largest abs(x) of these massive activations; null without any", "activation"),
    ),
)  # fmt: skip
