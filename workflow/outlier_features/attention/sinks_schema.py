"""The table that rule map_attention writes."""

from dataclasses import dataclass

import polars as pl

from outlier_features.files.columns import LAYER
from outlier_features.files.facts import Facts
from outlier_features.files.tables import Column, Table


@dataclass(frozen=True)
class SinkSample(Facts):
    """What the sinks were counted on, and by which threshold.

    positions                 of each of the `sequences` at most, `short_sequences` of which have fewer
    layers_without_patterns   of the model's `blocks`, those that have no attention by softmax weights
    """

    threshold: float
    blocks: int
    positions: int
    sequences: int
    short_sequences: int
    layers_without_patterns: list[int]


SINKS = Table(
    "sinks",
    "layer, head, key: every key position and, where attention has one, the learned sink",
    (
        LAYER,
        Column("head", pl.UInt16, "attention head of the queries, from 0"),
        Column("kv_head", pl.UInt16, "the KV head that it reads, from 0; null where each head has its own"),
        Column("token", pl.UInt32, "position of the key in the sequence, from 0; null for a learned sink"),
        Column("learned", pl.Boolean, "the key is a learned sink, which has no position"),
        Column("alpha", pl.Float64, "mean probability that the queries that can see the key give it, averaged over "
               "sequences", "probability"),
        Column("sink_rate", pl.Float64, "sequences in which that mean is above the threshold (0.3 unless configured) / "
               "sequences", "share"),
        Column("sequences", pl.Int64, "sequences that have the key; padding is none", "sequences"),
        Column("excluded", pl.Int64, "of these, sequences whose key is their first position or a special token",
               "sequences"),
    ),
)  # fmt: skip
