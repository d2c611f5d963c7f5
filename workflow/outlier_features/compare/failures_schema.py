"""The table of the runs that failed, which rule compare_models writes."""

import polars as pl

from outlier_features.files.tables import Column, Table

FAILURES = Table(
    "failures",
    "run that failed, so that nothing of it is compared; a later run tries it again",
    (
        Column("run", pl.String, "`model/corpus`"),
        Column("model", pl.String, "its model"),
        Column("corpus", pl.String, "its corpus"),
        Column("rule", pl.String, "the rule of the job that failed"),
        Column("reason", pl.String, "what that job said last; of one that was killed, that it said nothing"),
        Column("log", pl.String, "its log"),
    ),
    place="comparison/failures.parquet",
)
