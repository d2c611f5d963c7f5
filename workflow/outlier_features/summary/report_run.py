"""What a run left, as the report reads it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from outlier_features.attention.kept_patterns import AttentionMaps
from outlier_features.attention.sinks_schema import SINKS
from outlier_features.dims.dims_schema import DIMS
from outlier_features.files.artifacts import read_json, require_equal
from outlier_features.files.run_files import RunFiles
from outlier_features.files.sealed_parquet import open_parquet
from outlier_features.files.tables import Table, provenance_of, public_tables, read_batches, read_table
from outlier_features.summary.summarize_run import LOCATION_KEYS, SUMMARY_KEYS, facts_of
from outlier_features.tokens.token_text import read_texts, token_text
from outlier_features.tokens.tokens import Tokens

# Tables that the report shows, where the run has them.
SHOWN = {
    "layers", "distribution", "dims", "emergence", "sensitivity", "massive", "positions", "surface", "norms", "gains",
    "sinks", "lifecycle", "origin", "origin_shares", "origin_neurons", "experts", "routing", "expert_load",
    "expert_balance", "ablation", "expert_ablation", "knock_outs", "knock_out_dims", "triggers",
    "quantization", "weight_outliers", "quantization_loss", "quantization_signals",
}  # fmt: skip
# Tables of the gallery, which has a page for them.
OF_THE_GALLERY = {
    "neurons", "neuron_statistics", "gallery_neurons", "gallery_examples", "gallery_values", "gallery_dims",
}  # fmt: skip
# Of the others the report lists the first rows: one has a row for each sequence and dim.
MOST_ROWS = 200_000


@dataclass(frozen=True)
class Run:
    """What a run left, checked to belong together.

    tables        those that figures and words are made of
    first_rows    of the other public tables, at most 200,000 rows
    rows_in_all   how many rows these have
    """

    summary: Mapping[str, Any]
    tables: Mapping[str, pl.DataFrame]
    first_rows: Mapping[str, pl.DataFrame]
    rows_in_all: Mapping[str, int]
    tokens: Tokens
    texts: list[bytes]
    locations: Mapping[str, Any] | None
    maps: AttentionMaps | None

    @classmethod
    def read(cls, directory: Path) -> "Run":
        tokens = Tokens.read(directory / "tokens.safetensors")
        _, provenance = tokens.files.table(directory / "dims.parquet", DIMS)

        def rows(table: Table) -> pl.DataFrame:
            return tokens.files.rows(directory / f"{table.name}.parquet", table)

        def first(table: Table) -> pl.DataFrame:
            path = directory / f"{table.name}.parquet"
            tokens.files.require(provenance_of(path, table), path)
            return _first_rows(path, table)

        summary = read_json(directory / "summary.json", *SUMMARY_KEYS)
        present = [table for table in public_tables().values() if table.name in summary["tables"]]
        tables = {table.name: rows(table) for table in present if table.name in SHOWN}
        first_rows = {table.name: first(table) for table in present if table.name not in SHOWN | OF_THE_GALLERY}
        facts = facts_of(summary)
        require_equal(provenance, facts, tuple(facts), directory / "summary.json")
        return cls(
            summary,
            tables,
            first_rows,
            {name: _rows_in_all(directory / f"{name}.parquet") for name in first_rows},
            tokens,
            read_texts(directory / "texts.parquet", tokens),
            _locations(directory / "locations.json", tokens.files) if summary["location"] else None,
            _maps(directory) if "sinks" in tables and "attention_maps" not in summary["missing"] else None,
        )

    @property
    def name(self) -> str:
        """`model/corpus`."""
        return f"{self.summary['model']['name']}/{self.summary['corpus']['name']}"

    @property
    def populations(self) -> list[str]:
        return list(self.summary["populations"])

    @property
    def mapped_tokens(self) -> list[str]:
        """The text of each position of the first sequence whose attention patterns were kept."""
        if self.maps is None or not self.maps.sequences:
            return []
        sequence, size = self.maps.sequences[0], self.maps.positions[0]
        return [token_text(self.texts, self.tokens, sequence, position) or "" for position in range(size)]


def _first_rows(path: Path, table: Table) -> pl.DataFrame:
    batches: list[pl.DataFrame] = []
    for batch in read_batches(path, table):
        batches.append(batch)
        if sum(map(len, batches)) >= MOST_ROWS:
            break
    return pl.concat(batches).head(MOST_ROWS)


def _rows_in_all(path: Path) -> int:
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)


def _locations(path: Path, run: RunFiles) -> dict[str, Any]:
    document: dict[str, Any] = read_json(path, *LOCATION_KEYS)
    run.require(document, path)
    return document


def _maps(directory: Path) -> AttentionMaps:
    maps = AttentionMaps.read(directory / "attention.safetensors")
    _, made_by = read_table(directory / "sinks.parquet", SINKS)
    require_equal(made_by, maps.provenance, ("job",), directory / "attention.safetensors")
    return maps
