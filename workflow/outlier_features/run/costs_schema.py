"""The table that rule summarize_costs writes."""

import polars as pl

from outlier_features.files.tables import Column, Table

COSTS = Table(
    "costs",
    "rule, from Snakemake's benchmark files of all jobs that ever ran into these results, of each its last run",
    (
        Column("rule", pl.String, "name of the rule"),
        Column("jobs", pl.Int64, "jobs with a benchmark file", "jobs"),
        Column("seconds", pl.Float64, "wall time, all jobs together", "s"),
        Column("seconds_max", pl.Float64, "wall time of the longest job", "s"),
        Column("measured", pl.Int64, "jobs that ran long enough for the numbers below, which Snakemake samples: every "
               "half second at first, later every 30 s", "jobs"),
        Column("cpu_seconds", pl.Float64, "CPU time, user and system, all measured jobs together", "s"),
        Column("max_rss", pl.Float64, "largest resident memory of a job", "MiB"),
        Column("read", pl.Float64, "read from storage, what was cached not counted", "MiB"),
        Column("written", pl.Float64, "written to storage", "MiB"),
        Column("output_bytes", pl.Int64, "size of the rule's outputs that are there; what later rules removed is not",
               "bytes"),
    ),
    place="costs.csv",
)  # fmt: skip
