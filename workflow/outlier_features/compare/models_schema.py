"""The table that rule compare_models writes."""

from collections.abc import Iterator

import polars as pl

from outlier_features.files.columns import POPULATION, READINGS, RULE, SITES
from outlier_features.files.tables import Column, Table

# Numbers of a run's own beside which a published one may stand, with its unit.
PUBLISHED = {
    "perplexity": "", "dims": "dims", "layer_share_mean": "share", "position_share_mean": "share",
    "sweep_pairs": "pairs", "sweep_layer_share_mean": "share", "sweep_layer_share_median": "share",
    "sweep_position_share_mean": "share", "sweep_position_share_median": "share", "magnitude_median": "activation",
    "mean_largest": "activation", "sink_rate": "share", "super_weights": "weights",
}  # fmt: skip
_SWEEP = (
    "of the pairs that pass when layers are counted as `sites_share` and positions as `union`, as published sweeps do"
)


def _measured(
    name: str, meaning: str, unit: str = "", interval: str = "", dtype: type[pl.DataType] = pl.Float64
) -> Iterator[Column]:
    """A number with its bootstrap interval over sequences."""
    yield Column(name, dtype, meaning, unit)
    note = f"; {interval}" if interval else ""
    yield Column(f"{name}_low", pl.Float64, f"`{name}`, lower end of its 95 % interval over sequences{note}", unit)
    yield Column(f"{name}_high", pl.Float64, f"`{name}`, upper end of its 95 % interval over sequences{note}", unit)


def _shares(prefix: str, of: str) -> Iterator[Column]:
    for share, name in (("layer_share", "layer share"), ("position_share", "position share")):
        for how in ("mean", "median"):
            yield from _measured(f"{prefix}{share}_{how}", f"{name}, {how} {of}", "share")


MODELS = Table(
    "models",
    "run, rule, sites, population. Numbers with `_low` and `_high` have a bootstrap interval: percentiles 2.5 and 97.5 "
    "of 1,000 draws of the run's sequences; null where the run has one sequence",
    (
        Column("run", pl.String, "`model/corpus`"),
        Column("model", pl.String, "the model's name in the catalog"),
        Column("revision", pl.String, "which of the model's revisions, of a run of `<model>@<revision>`; else null"),
        Column("step", pl.Int64, "the training step that the revision's name tells; null where it tells none", "steps"),
        Column("same_weights_as", pl.String, "the revision that stands for all that have these weights, byte for byte: "
               "that of the latest step; null: this one does, or the run is of no revision"),
        Column("corpus", pl.String, "the corpus's name in the catalog"),
        Column("origin", pl.String, "hub id, directory, wheel or files of a dump"),
        Column("architecture", pl.String, "type of the model"),
        RULE, SITES, POPULATION,
        Column("parameters", pl.Int64, "parameters of the model as it was loaded; null for a dump", "parameters"),
        Column("active_parameters", pl.Int64, "those that a token uses: without the experts that its router does not "
               "choose; null where the experts were not looked into", "parameters"),
        Column("routed_experts", pl.Int64, "experts that routers choose from, over all blocks; 0: a dense model, null "
               "where they were not looked into", "experts"),
        Column("blocks", pl.Int64, "blocks of the model", "blocks"),
        Column("d_model", pl.Int64, "width of the residual stream", "dims"),
        Column("dtype", pl.String, "number format that it was run in"),
        Column("sequences", pl.Int64, "sequences of the run", "sequences"),
        Column("positions", pl.Int64, "positions of the population over all sequences", "positions"),
        *_measured("perplexity", "exp of the mean negative log-likelihood of a token: not comparable between models "
                   "of different tokenizers, whose tokens are of different length; null without a loss"),
        *_measured("bits_per_byte", "the same sum in bits / UTF-8 bytes of the predicted tokens' text: comparable "
                   "between any models on one corpus, whatever their tokenizers", "bits per byte"),
        Column("largest_over_median", pl.Float64, "largest abs(x) of a sequence on resid_post over the median, both "
               "averaged over the sequences, of the block where that is largest"),
        Column("largest_over_median_layer", pl.UInt16, "that block"),
        *_measured("dims", "dims that the rule selects: those that pass in at least one sequence; by rule `location` "
                   "those with kept occurrences", "dims",
                   "which lies too low, as a draw lacks a third of the sequences and has no others", pl.Int64),
        *_measured("pairs", "(sequence, dim) pairs that pass", "pairs", dtype=pl.Int64),
        Column("layer_reading", pl.String, "what `layer_share_*` is, the rule's own reading: "
               + "; ".join(f"`{name}`: {READINGS[name]}" for name in ("blocks", "sites_share"))),
        Column("position_reading", pl.String, "what `position_share_*` is, the rule's own reading: "
               + "; ".join(f"`{name}`: {READINGS[name]}" for name in ("union", "pooled", "affected"))),
        *_shares("", "over the selected dims, of a dim the mean over the sequences with a hit"),
        *_measured("sweep_pairs", "number " + _SWEEP + "; null for a rule without shares", "pairs", dtype=pl.Int64),
        *_shares("sweep_", _SWEEP),
        *_measured("magnitude_median", "of the selected dim with the most hits: largest abs(x) of a hit in a sequence, "
                   "median over the sequences in which it passes", "activation"),
        Column("mean_largest", pl.Float64, "largest abs(x) of a sequence and layer at the rule's sites, averaged over "
               "the sequences, of the layer where that is largest, hit or not", "activation"),
        Column("largest", pl.Float64, "largest abs(x) of a hit", "activation"),
        Column("largest_site", pl.String, "its site; null where several have the same value, or it cannot be told"),
        Column("largest_layer", pl.UInt16, "its block; null likewise"),
        Column("largest_dim", pl.UInt32, "its dim, whose number means nothing in another model"),
        Column("largest_sequence", pl.UInt32, "its sequence"),
        Column("largest_token", pl.UInt32, "its position; null where several have the same value, or it cannot be "
               "told"),
        Column("largest_token_text", pl.String, "the text that the token covers; of a special token, its name"),
        Column("sink_rate", pl.Float64, "of the first position as a key, mean over layers and heads; null where there "
               "are no attention patterns", "share"),
        Column("super_weights", pl.Int64, "super weights that were found; null where they were not looked for",
               "weights"),
        *_measured("super_weights_nats", "what a token's negative log-likelihood rises by with all of them set to zero",
                   "nats per token", "of the ablations' sample"),
        Column("super_experts", pl.Int64, "super experts, by the paper's text; null as `routed_experts`", "experts"),
        Column("ablation", pl.String, "of the ablations of all the rule's dims the one that costs most: where they are "
               "set to what"),
        *_measured("ablation_nats", "what a token's negative log-likelihood rises by in it; null where it is not "
                   "finite", "nats per token", "of the ablations' sample"),
        Column("ablation_random_nats", pl.Float64, "the same of as many random dims, mean over the draws",
               "nats per token"),
        *(column for name, unit in PUBLISHED.items() for column in (
            Column(f"published_{name}", pl.Float64, f"what was published as `{name}`", unit),
            Column(f"{name}_difference", pl.Float64, f"`{name}` - `published_{name}`", unit))),
        Column("published_model", pl.String, "the published model's hub id, or its name in the source"),
        Column("published_counts", pl.String, "what each published number counts"),
        Column("published_source", pl.String, "where each was read, and whether it was read or quoted"),
    ),
    place="comparison/models.parquet",
)  # fmt: skip
