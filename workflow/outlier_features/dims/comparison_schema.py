"""The tables that rule compare_runs writes."""

from collections.abc import Iterator

import polars as pl

from outlier_features.files.columns import DIM, POPULATION, RULE, SITES
from outlier_features.files.tables import Column, Table

_RUNS = (
    Column("first", pl.String, "a run, `model/corpus`"),
    Column("second", pl.String, "another run"),
)


def _of_both(name: str, dtype: type[pl.DataType], meaning: str, unit: str = "") -> Iterator[Column]:
    yield from (Column(f"{name}_{which}", dtype, meaning.format(which), unit) for which in ("first", "second"))


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

COMPARED_DIMS = Table(
    "compared_dims",
    "population, rule, sites, two runs and a dim that the rule selects in one of them at least; by rule `location` one "
    "with kept occurrences",
    (
        POPULATION, RULE, SITES, *_RUNS, DIM,
        *_of_both("selected", pl.Boolean, "the rule selects it in the {} run"),
        *_of_both("occurrences", pl.Int64, "its hits by the rule in the {} run, selected or not", "values"),
        *_of_both("max_abs", pl.Float64, "largest abs(x) among these; null if there are none, and by rule `location`",
                  "activation"),
    ),
    place="comparison/compared_dims.parquet",
)  # fmt: skip
