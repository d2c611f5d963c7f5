"""The table that rule analyze_emergence writes."""

import polars as pl

from outlier_features.files.columns import DIM, LAYER, POPULATION, SITE
from outlier_features.files.tables import Column, Table

EMERGENCE = Table(
    "emergence",
    "population, site, dim, layer: for every dim with a hit in either population, by a rule on a basis of d_model",
    (
        POPULATION, SITE, DIM, LAYER,
        Column("max_abs", pl.Float64, "largest abs(x)", "activation"),
        Column("low", pl.Float64, "smallest x", "activation"),
        Column("high", pl.Float64, "largest x", "activation"),
        Column("mean", pl.Float64, "mean x", "activation"),
        Column("rms", pl.Float64, "root of the mean square", "activation"),
    ),
)  # fmt: skip
