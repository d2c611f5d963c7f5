"""The tables that rule detect_outliers writes."""

import polars as pl

from outlier_features.files.columns import DIM, LAYER, POPULATION, RULE, SEQUENCE, SITE, SITES, TOKEN
from outlier_features.files.tables import Column, Table

HITS = Table(
    "hits",
    "a value at or above the site's floor; of a sequence in which these are more than `detect.max_density` of the "
    "values, none but those that a rule like massive, which counts do not suffice for, may select",
    (
        SEQUENCE, LAYER, TOKEN, DIM,
        Column("value", pl.Float32, "the value itself, signed", "activation"),
        Column("excluded", pl.Boolean, "the position is the first of its sequence or a special token"),
    ),
    place="hits/<site>/<chunk>.parquet",
)  # fmt: skip

SCALED_HITS = Table(
    "scaled_hits",
    "site, scale, sequence, layer, token, dim: a value that is large against a scale, by at least the smallest "
    "multiple that a rule or the sensitivity table applies; of one site and scale in the order of "
    "sequence, layer, token, dim",
    (
        SITE,
        Column("scale", pl.String, "`token_rms`: the RMS of the position; `layer_rms`: that of the sequence and layer; "
               "`gain`: the gain of the norm whose output the site is"),
        SEQUENCE, LAYER, TOKEN, DIM,
        Column("value", pl.Float32, "the value itself, signed", "activation"),
        Column("scaled", pl.Float64, "value over the scale; by `layer_rms`, of the populations that the position "
               "belongs to, the one with the smaller RMS"),
        Column("excluded", pl.Boolean, "the position is the first of its sequence or a special token"),
    ),
    place="scaled_hits/<chunk>.parquet",
)  # fmt: skip

_COUNTED_AT = Column("threshold", pl.Float64, "a hit's abs(x) is at least this (rounded to float32)", "activation")

PAIR_COUNTS = {
    "blocks_hit": (pl.Int64, "blocks with a hit at any of the sites", "blocks"),
    "tensors_hit": (pl.Int64, "site tensors with a hit", "site tensors"),
    "positions_hit": (pl.Int64, "positions with a hit of this dim at any site tensor", "positions"),
    "occurrences": (pl.Int64, "hits (layer, site, token) of this dim in this sequence", "values"),
    "positive": (pl.Int64, "hits above zero", "values"),
    "first_layer": (pl.UInt16, "first block with a hit", ""),
    "last_layer": (pl.UInt16, "last block with a hit", ""),
    "max_abs": (pl.Float64, "largest abs(x) among the hits", "activation"),
}

COUNTED_PAIRS = Table(
    "counted_pairs",
    "population, rule, sites, threshold, sequence, dim: every pair with a hit, in sequences whose hits at one of the "
    "sites are not listed",
    (
        POPULATION, RULE, SITES, _COUNTED_AT, SEQUENCE, DIM,
        *(Column(name, dtype, meaning, unit) for name, (dtype, meaning, unit) in PAIR_COUNTS.items()),
    ),
    place="counted_pairs/<chunk>.parquet",
)  # fmt: skip

COUNTED_POSITIONS = Table(
    "counted_positions",
    "site, threshold, sequence, token: every position with a value at or above the floor, in sequences whose hits at "
    "the site are not listed",
    (
        SITE, _COUNTED_AT, SEQUENCE, TOKEN,
        Column("excluded", pl.Boolean, "the position is the first of its sequence or a special token"),
        Column("occurrences", pl.Int64, "hits (layer, dim) at this position", "values"),
        Column("max_abs", pl.Float64, "largest abs(x) at this position, a hit or not", "activation"),
    ),
    place="counted_positions/<chunk>.parquet",
)  # fmt: skip
