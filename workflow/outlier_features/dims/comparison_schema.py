"""The tables that rule compare_runs writes."""

import polars as pl

from outlier_features.files.columns import DIM, POPULATION, RULE, SITES
from outlier_features.files.tables import Column, Table

_RUNS = (
    Column("first", pl.String, "a run, `model/corpus`"),
    Column("second", pl.String, "another run"),
)

COMPARISON = Table(
    "comparison",
    "population, rule, sites, and two runs of one model (its corpora, dtypes and revisions; or dumps as wide) that "
    "both have these; dims that the rule selects, by rule `location` those with kept occurrences",
    (
        POPULATION, RULE, SITES, *_RUNS,
        Column("dims_first", pl.Int64, "dims of the first run", "dims"),
        Column("dims_second", pl.Int64, "dims of the second run", "dims"),
        Column("common", pl.Int64, "dims in common", "dims"),
        Column("jaccard", pl.Float64, "dims in common / dims of either; null if neither has any"),
    ),
    place="comparison/dims.parquet",
)  # fmt: skip

COMMON_DIMS = Table(
    "common_dims",
    "population, rule, sites, two runs and a dim that both have",
    (
        POPULATION, RULE, SITES, *_RUNS, DIM,
        Column("min_count", pl.Int64, "the smaller of its numbers of occurrences in the two runs", "values"),
    ),
    place="comparison/common_dims.parquet",
)  # fmt: skip
