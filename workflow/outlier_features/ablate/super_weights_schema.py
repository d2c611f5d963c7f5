"""The table of the search for super weights."""

import polars as pl

from outlier_features.files.columns import LAYER
from outlier_features.files.tables import Column, Table

SUPER_WEIGHTS = Table(
    "super_weights",
    "round of the search: the weight of an MLP's last linear layer that was found in it and then set to zero",
    (
        Column("round", pl.UInt16, "round of the search, from 1; the weights of earlier rounds are zero in it"),
        LAYER,
        Column("module", pl.String, "path of the linear layer in the model"),
        Column("row", pl.UInt32, "the weight's output: dim of the spike on mlp_down"),
        Column("col", pl.UInt32, "the weight's input: neuron of the spike on mlp_act"),
        Column("value", pl.Float64, "the weight", "weight"),
        Column("mlp_act", pl.Float64, "value with the largest abs(x) on mlp_act in this round", "activation"),
        Column("mlp_act_token", pl.UInt32, "its position in the sequence that was run"),
        Column("mlp_down", pl.Float64, "value with the largest abs(x) on mlp_down in this round", "activation"),
        Column("mlp_down_token", pl.UInt32, "its position in the sequence that was run"),
        Column("published", pl.Boolean, "the weight is among the model's published coordinates; null without any"),
    ),
)  # fmt: skip
