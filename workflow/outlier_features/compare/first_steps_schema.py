"""The table that rule compare_revisions writes."""

import polars as pl

from outlier_features.files.columns import DIM, POPULATION, RULE, SITES
from outlier_features.files.tables import Column, Table

FIRST_STEPS = Table(
    "first_steps",
    "model with revisions, corpus, rule, sites, population and a dim that the rule selects in at least one of its "
    "revisions, by rule `location` with kept occurrences. Revisions count that have a step, at which the rule could be "
    "applied, and whose weights no revision of a later step has",
    (
        Column("model", pl.String, "the model's name in the catalog"),
        Column("corpus", pl.String, "the corpus's name in the catalog"),
        RULE, POPULATION, DIM,
        Column("first_step", pl.Int64, "first training step at which the dim passes", "steps"),
        Column("first_revision", pl.String, "the revision of that step"),
        Column("step_before", pl.Int64, "the last step that was run before it, at which the dim does not pass; null: "
               "it passes at the first one that was run", "steps"),
        Column("last_step", pl.Int64, "last training step at which it passes", "steps"),
        Column("steps_passing", pl.Int64, "revisions in which it passes", "revisions"),
        Column("steps", pl.Int64, "revisions that count", "revisions"),
        Column("occurrences_first", pl.Int64, "the dim's hits at `first_step`", "values"),
        Column("occurrences_last", pl.Int64, "the dim's hits at `last_step`", "values"),
        SITES,
    ),
    place="comparison/first_steps.parquet",
)  # fmt: skip
