"""The table that rule measure_loss writes, and what its input says."""

import polars as pl

from outlier_features.files.columns import SEQUENCE
from outlier_features.files.tables import Column, Table

SCORED = "losses_recorded"  # in a provenance: whether the passes were to compute the losses of tokens

LOSS = Table(
    "loss",
    "sequence; `nll` is null for a model without a causal language-model head",
    (
        SEQUENCE,
        Column("tokens", pl.Int64, "tokens that are predicted: positions 1..T-1, padding left out", "tokens"),
        Column("bytes", pl.Int64, "UTF-8 bytes of the text of those tokens", "bytes"),
        Column("nll", pl.Float64, "sum of their negative log-likelihoods given what precedes", "nats"),
    ),
)  # fmt: skip
