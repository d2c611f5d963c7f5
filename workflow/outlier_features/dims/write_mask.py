"""Rule write_mask: the dims that carry outlier features and massive activations, for those who want them left out."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jsonschema import Draft202012Validator

from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.dims.dims_schema import DIMS, MASSIVE
from outlier_features.files.artifacts import write_json
from outlier_features.files.missing import MISSING
from outlier_features.populations import EXCLUDED, REST, populations_of
from outlier_features.rules.kinds import applied_sites, hit_rules
from outlier_features.tokens.tokens import Tokens

VERSION = 1
_FACTS = ("model", "model_revision", "architecture", "blocks", "d_model", "corpus", "corpus_sha256", "tokens_sha256",
          "sample", "dtype", "sites", "rules", "package_version")  # fmt: skip


def write_mask(
    tokens: Path, dims: Path, massive: Path, super_weights: Path | None, mask: Path, *, schema: Path
) -> None:
    """Write `mask` by the JSON Schema `schema`, which describes every key.

    super_weights   None for a dump
    """
    run = Tokens.read(tokens)
    dim_rows, provenance = run.files.table(dims, DIMS)
    activations = run.files.rows(massive, MASSIVE)
    content = {
        "version": VERSION,
        **{key: provenance[key] for key in _FACTS},
        "positions": {
            "first_or_special": int(np.count_nonzero(run.parts == EXCLUDED)),
            "other": int(np.count_nonzero(run.parts == REST)),
        },
        "masks": list(_masks(dim_rows, activations, provenance, populations_of(run.parts))),
        "super_weights": super_weights and _super_weights(*run.files.table(super_weights, SUPER_WEIGHTS)),
    }
    Draft202012Validator(json.loads(schema.read_text(encoding="utf-8"))).validate(content)
    write_json(mask, content)


def _masks(dims: pl.DataFrame, listed: pl.DataFrame, run: Mapping[str, Any], populations: list[str]) -> Iterator[Any]:
    for name, rule in hit_rules(run["rules"]).items():
        sites = applied_sites(rule, run)
        for population in populations if sites else []:
            selected = dims.filter("selected", rule=name, population=population)
            yield {
                "rule": name,
                "population": population,
                "sites": sites,
                "basis": rule.basis,
                "dims": _dims(selected),
                "massive": _massive(listed.filter(f"massive_{population}", rule=name)) if rule.lists_hits else None,
            }


def _dims(selected: pl.DataFrame) -> list[dict[str, Any]]:
    positive = pl.col("positive") > pl.col("negative")
    sign = pl.when(~pl.col("one_sided")).then(pl.lit("both")).when(positive).then(pl.lit("positive"))
    return (
        selected.sort(["max_abs", "dim"], descending=[True, False])
        .select(
            "dim", "kind", "sequences_passing", "first_layer", "last_layer", "step_up", "step_down", "max_abs",
            majority="selected_majority",
            sign=sign.otherwise(pl.lit("negative")),
            positions="locations",
            block_share="blocks_mean",
            position_share="union_mean",
        )
        .to_dicts()
    )  # fmt: skip


def _massive(activations: pl.DataFrame) -> dict[str, Any]:
    def parted(*by: str) -> pl.DataFrame:
        """Positions (sequence, token) by `by`, in each part of a sequence."""
        places = activations.select(*by, "sequence", "token", "excluded").unique()
        counts = places.group_by(by, maintain_order=True).agg(
            first_or_special=pl.col("excluded").sum(), other=(~pl.col("excluded")).sum()
        )
        return counts.select(*by, positions=pl.struct("first_or_special", "other"))

    everywhere = activations.select("sequence", "token", "excluded").unique()["excluded"]
    tokens = parted("token_id", "token_text").with_columns(
        number=pl.col("positions").struct.field("first_or_special") + pl.col("positions").struct.field("other")
    )
    return {
        "activations": len(activations),
        "positions": {"first_or_special": int(everywhere.sum()), "other": int((~everywhere).sum())},
        "tokens": tokens.sort(
            ["number", "token_id", "token_text"], descending=[True, False, False]
        ).drop("number").to_dicts(),
        "locations": parted("layer", "dim").sort("layer", "dim").to_dicts(),
    }  # fmt: skip


def _super_weights(found: pl.DataFrame, provenance: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    if MISSING in provenance:
        return None
    return found.select("layer", "module", "row", "col", "value").to_dicts()
