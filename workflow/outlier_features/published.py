"""What papers and repositories published, to stand beside a run's own results: `workflow/published/*.csv`."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import polars as pl

FILES = (
    "moe_sweep", "qwen3_dense", "massive_activations", "attention_sinks", "super_weights", "super_experts",
    "super_weight_effects", "gpt2_mlp", "gelu1l_neuron424", "dettmers2022",
)  # fmt: skip
_FACT = ("quantity", "value", "text", "unit", "source", "certainty")
_NOT_WHERE = {*_FACT, "model", "hub_id", "rule"}


def published_facts(folder: Path, kind: str, origin: str) -> list[dict[str, str]]:
    """What the tables in `folder` say about the model, as text: file, quantity, value, where, rule, source, certainty.

    `where` has every other field that is stated, such as layer, dim and condition.
    """
    return [
        {
            "file": name,
            "quantity": row.get("quantity") or "coordinate",
            "value": " ".join(str(row[part]) for part in ("value", "text", "unit") if row.get(part) is not None),
            "where": ", ".join(f"{key} {row[key]}" for key in row if key not in _NOT_WHERE and row[key] is not None),
            "rule": row.get("rule") or "",
            "hub_id": row["hub_id"],
            "source": row["source"],
            "certainty": row["certainty"],
        }
        for name in FILES
        for row in _about(pl.read_csv(folder / f"{name}.csv", infer_schema=False), kind, origin).iter_rows(named=True)
    ]


def published_super_weights(table: Path, model_source: Mapping[str, Any]) -> pl.DataFrame:
    """The rows of super_weights.csv that are about this model, without those of single experts.

    A model from the hub is known by its id; one in a directory by the directory's name, compared with the ids' last
    part, which is a likeness and no proof: `hub_id` says whose numbers they are.
    """
    rows = pl.read_csv(table, infer_schema_length=None).filter(pl.col("expert").is_null())
    return _about(rows, model_source["kind"], str(model_source["origin"]))


def published_examples(table: Path, model_source: Mapping[str, Any]) -> pl.DataFrame:
    """The rows of gelu1l_neuron424.csv if they are about this model, in order: layer, neuron, rank, value, sequence,
    position, source."""
    rows = pl.read_csv(table, infer_schema_length=None)
    found = _about(rows, model_source["kind"], str(model_source["origin"]))
    return found.select("layer", "neuron", "rank", "value", "sequence", "position", "source").sort("rank")


def _about(rows: pl.DataFrame, kind: str, origin: str) -> pl.DataFrame:
    ids, wanted = pl.col("hub_id").str.to_lowercase(), origin.lower()
    if kind == "hub":
        return rows.filter(ids == wanted)
    if kind == "path":
        return rows.filter(ids.str.split("/").list.last() == PurePath(wanted).name)
    return rows.clear()
