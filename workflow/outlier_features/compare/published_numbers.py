"""What papers and repositories printed of models, by the columns of the table `models` that say the same of a run."""

from pathlib import Path

import polars as pl

# File, quantity and statistic as they stand there; the column, and by how much the number is multiplied for it.
_QUANTITIES = (
    *((file, *rest) for file in ("moe_sweep", "qwen3_dense") for rest in (
        ("total_params", "", "parameters", 1e9, ""),
        ("active_params", "", "active_parameters", 1e9, ""),
        ("perplexity", "", "perplexity", 1.0, "perplexity over its own sample of tokens"),
        ("sequence_dim_pairs", "", "sweep_pairs", 1.0, "(sequence, dim) pairs"),
        ("mean_layer_pct", "", "sweep_layer_share_mean", 0.01, "site tensors, over pairs"),
        ("median_layer_pct", "", "sweep_layer_share_median", 0.01, "site tensors, over pairs"),
        ("mean_seq_pct", "", "sweep_position_share_mean", 0.01, "positions, over pairs"),
        ("median_seq_pct", "", "sweep_position_share_median", 0.01, "positions, over pairs"),
    )),
    ("dettmers2022", "perplexity", "", "perplexity", 1.0, "perplexity on C4's validation set"),
    ("dettmers2022", "outlier_dims", "", "dims", 1.0, "outlier dims"),
    ("dettmers2022", "layers_affected", "", "layer_share_mean", 0.01, "layers affected, how averaged is not said"),
    ("dettmers2022", "sequence_dims_affected", "", "position_share_mean", 0.01,
     "sequence dims affected, how averaged is not said"),
    ("dettmers2022", "most_common_outlier_quartile2", "", "magnitude_median", 1.0,
     "median over all values of the most common outlier dim"),
    ("massive_activations", "massive_dims", "", "dims", 1.0, "dims with a massive activation in 50 sequences"),
    ("massive_activations", "max_abs", "mean over sequences of per-sequence max", "mean_largest", 1.0,
     "largest abs(x) of a sequence and layer, mean over sequences, largest over layers"),
    ("attention_sinks", "sink_rate", "", "sink_rate", 0.01, "(block, head) pairs above 0.3 at the first key"),
)  # fmt: skip
# What the numbers of a file are about: a kind of rule with the numbers that were published, or the run as a whole.
SYSTEMATIC, MASSIVE, WHOLE = "systematic", "massive", ""
_KINDS = {
    "moe_sweep": SYSTEMATIC, "qwen3_dense": SYSTEMATIC, "dettmers2022": SYSTEMATIC, "massive_activations": MASSIVE,
    "attention_sinks": WHOLE,
}  # fmt: skip
# The rows of a file that are about a model as it is.
_ROWS = {
    "dettmers2022": {"location": "Table 4", "condition": ""},
    "attention_sinks": {"condition": "", "input": "natural", "epsilon": "0.3", "position": "1"},
}
_BOS = {"bos": True, "no_bos": False}
_SCHEMA = {
    "file": pl.String, "kind": pl.String, "model": pl.String, "hub_id": pl.String, "column": pl.String,
    "value": pl.Float64, "bos": pl.Boolean, "counts": pl.String, "source": pl.String, "certainty": pl.String,
}  # fmt: skip


def published_numbers(folder: Path) -> pl.DataFrame:
    """A row for each model and number, from the tables in `folder`.

    file       the table, without its suffix
    kind       of the rule that it is about; empty where it is about no rule
    hub_id     null where the source is about a model that has none
    column     of the table `models`; also `parameters` and `active_parameters`, as the sources round them
    bos        whether it was read with a BOS token before the text; null where that is not said
    counts     what the number counts, where it is not what the column says
    """
    files = {name: _rows(folder / f"{name}.csv").filter(**_ROWS.get(name, {})) for name in _KINDS}
    frames = [
        _named(
            files[file].filter(quantity=quantity, statistic=statistic),
            file, column, pl.col("value").cast(pl.Float64).abs() * factor, counts,
        )
        for file, quantity, statistic, column, factor, counts in _QUANTITIES
    ]  # fmt: skip
    sized = files["dettmers2022"].filter(quantity="outlier_dims")
    frames.append(_named(sized, "dettmers2022", "parameters", pl.col("params_b").cast(pl.Float64) * 1e9, ""))
    return pl.concat([*frames, _super_weights(folder / "super_weights.csv")])


def _rows(path: Path) -> pl.DataFrame:
    rows = pl.read_csv(path, infer_schema=False)
    lacking = [name for name in ("statistic", "condition") if name not in rows.columns]
    rows = rows.with_columns(pl.lit("").alias(name) for name in lacking)
    return rows.with_columns(pl.col("statistic", "condition").fill_null(""))


def _named(rows: pl.DataFrame, file: str, column: str, value: pl.Expr, counts: str) -> pl.DataFrame:
    """The number of each model in `rows`; of one for each layer the largest."""
    found = rows.filter(pl.col("model").is_not_null()).select(
        "model", "hub_id", "source", "certainty",
        value=value,
        file=pl.lit(file),
        kind=pl.lit(_KINDS[file]),
        column=pl.lit(column),
        counts=pl.lit(counts),
        bos=pl.col("condition").replace_strict(_BOS, default=None, return_dtype=pl.Boolean),
    )  # fmt: skip
    if file == "massive_activations":  # other conditions are of changed models
        found = found.filter(pl.col("bos").is_not_null()).sort("value", descending=True, maintain_order=True)
        found = found.unique(("hub_id", "bos"), keep="first", maintain_order=True)
    return found.select(pl.col(name).cast(dtype) for name, dtype in _SCHEMA.items())


def _super_weights(path: Path) -> pl.DataFrame:
    """How many super weights of dense MLPs the first source that names some of a model has."""
    rows = pl.read_csv(path, infer_schema=False).filter(pl.col("expert").is_null(), pl.col("hub_id").is_not_null())
    rows = rows.filter(pl.col("source") == pl.col("source").first().over("hub_id"))
    counted = rows.group_by("hub_id", maintain_order=True).agg(
        pl.col("model", "source", "certainty").first(),
        value=pl.struct("layer", "row", "col").n_unique().cast(pl.Float64),
    )
    return counted.select(
        file=pl.lit("super_weights"),
        kind=pl.lit(WHOLE),
        model="model",
        hub_id="hub_id",
        column=pl.lit("super_weights"),
        value="value",
        bos=pl.lit(None, pl.Boolean),
        counts=pl.lit("coordinates of one source"),
        source="source",
        certainty="certainty",
    )


def numbers_of_model(numbers: pl.DataFrame, kind: str, origin: str, bos: bool) -> pl.DataFrame:
    """Those of a run's model, read with a BOS token or without as the run was, where that is said.

    A model from the hub is known by its id, one in a directory by the directory's name.
    """
    ids = pl.col("hub_id").str.to_lowercase()
    wanted = origin.lower()
    if kind == "hub":
        mine = numbers.filter(ids == wanted)
    elif kind == "path":
        mine = numbers.filter(ids.str.split("/").list.last() == Path(wanted).name)
    else:
        mine = numbers.clear()
    return mine.filter(pl.col("bos").is_null() | (pl.col("bos") == bos)).unique(
        ("kind", "column"), keep="first", maintain_order=True
    )
