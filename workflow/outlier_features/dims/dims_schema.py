"""The tables that rule filter_systematic writes."""

import polars as pl

from outlier_features.files.columns import DIM, LAYER, POPULATION, READINGS, RULE, SEQUENCE, SITE, SITES, TOKEN
from outlier_features.files.tables import Column, Table

PAIRS = Table(
    "pairs",
    "population, rule, sites, sequence, dim: every pair with a hit",
    (
        POPULATION, RULE, SITES, SEQUENCE, DIM,
        *(Column(name, pl.Float64, meaning, "share") for name, meaning in READINGS.items()),
        Column("occurrences", pl.Int64, "hits (layer, site, token) of this dim in this sequence", "values"),
        Column("locations", pl.Int64, "positions with a hit of this dim at any site tensor", "positions"),
        Column("positive", pl.Int64, "hits above zero", "values"),
        Column("first_layer", pl.UInt16, "first block with a hit"),
        Column("last_layer", pl.UInt16, "last block with a hit"),
        Column("max_abs", pl.Float64, "largest abs(x) among the hits", "activation"),
        Column("passes", pl.Boolean, "the pair meets the rule's criteria"),
    ),
)  # fmt: skip

DIMS = Table(
    "dims",
    "population, rule, sites, dim: every dim with a hit",
    (
        POPULATION, RULE, SITES, DIM,
        Column("occurrences", pl.Int64, "hits (sequence, layer, site, token)", "values"),
        Column("locations", pl.Int64, "positions (sequence, token) with a hit at any site tensor", "positions"),
        Column("positive", pl.Int64, "hits above zero", "values"),
        Column("negative", pl.Int64, "hits below zero", "values"),
        Column("one_sided", pl.Boolean, "one sign holds at least 95 % of the hits"),
        Column("sequences", pl.Int64, "sequences with a hit", "sequences"),
        Column("sequences_passing", pl.Int64, "sequences in which the dim meets the rule's criteria", "sequences"),
        Column("selected", pl.Boolean, "at least one sequence passes"),
        Column("selected_majority", pl.Boolean, "more than half of all sequences pass"),
        *(Column(f"{name}_{how}", pl.Float64, f"{meaning}; {how} over the sequences with a hit", "share")
          for name, meaning in READINGS.items() for how in ("mean", "median")),
        Column("first_layer", pl.UInt16, "first block with a hit"),
        Column("last_layer", pl.UInt16, "last block with a hit"),
        Column("max_abs", pl.Float64, "largest abs(x) among the hits", "activation"),
        Column("kind", pl.String, "of a selected dim, by its mean union share over the passing sequences: "
               "`persistent` (>= 50 %), `massive` (<= 5 %), else `mixed`"),
        Column("step_up", pl.UInt16, "first block where max abs(x) on resid_post reaches half its maximum over blocks"),
        Column("step_down", pl.UInt16, "first later block below that half; null if it never falls"),
    ),
)  # fmt: skip

SENSITIVITY = Table(
    "sensitivity",
    "population, rule, layer reading, position reading, threshold, layer share, position share",
    (
        POPULATION, RULE, SITES,
        Column("layer_reading", pl.String, "which layer share: `blocks` or `sites_share`"),
        Column("position_reading", pl.String, "which position share: `union`, `pooled` or `affected`"),
        Column("threshold", pl.Float64, "abs(x) at least", "activation"),
        Column("layer_share", pl.Float64, "layer share at least", "share"),
        Column("position_share", pl.Float64, "position share at least", "share"),
        Column("dims", pl.Int64, "dims that pass in at least one sequence", "dims"),
        Column("pairs", pl.Int64, "(sequence, dim) pairs that pass", "pairs"),
    ),
)  # fmt: skip

MASSIVE = Table(
    "massive",
    "rule, site, sequence, layer, token, dim: every massive activation",
    (
        RULE, SITE, SEQUENCE, LAYER, TOKEN, DIM,
        Column("value", pl.Float64, "the value itself, signed", "activation"),
        Column("median", pl.Float64, "median of abs(x) of that layer and sequence, all positions", "activation"),
        Column("ratio", pl.Float64, "abs(value) / median"),
        Column("massive_all", pl.Boolean, "meets the rule by the median over all positions"),
        Column("median_without_first", pl.Float64, "the same median over population `without_first`", "activation"),
        Column("ratio_without_first", pl.Float64, "abs(value) / median_without_first; null if excluded"),
        Column("massive_without_first", pl.Boolean, "is in `without_first` and meets the rule by its median"),
        Column("excluded", pl.Boolean, "the position is the first of its sequence or a special token"),
        Column("token_id", pl.Int64, "vocabulary id of the token"),
        Column("token_text", pl.String, "the text that the token covers; of a special token, its name"),
    ),
)  # fmt: skip

POSITIONS = Table(
    "positions",
    "population, site, token: every position that the population has in some sequence",
    (
        POPULATION, SITE,
        Column("rule", pl.String, "the rule whose hits are counted, whether or not it selects their dims; null: no "
               "rule is applied to the site"),
        Column("threshold", pl.Float64, "what a hit's abs(x) is at least, by a rule like massive more than (and at "
               "least so many medians); without a rule the site's floor", "activation"),
        TOKEN,
        Column("sequences", pl.Int64, "sequences that have this position in the population", "sequences"),
        Column("sequences_hit", pl.Int64, "sequences with a hit at this position, in any layer", "sequences"),
        Column("occurrences", pl.Int64, "hits (sequence, layer, dim) at this position", "values"),
        Column("max_abs", pl.Float64, "largest abs(x) at this position, a hit or not; null where it is below the "
               "site's floor", "activation"),
    ),
)  # fmt: skip
