"""Rule compare_runs: which dims two runs of one model have in common, by each rule."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl

from outlier_features.dims.comparison_schema import COMMON_DIMS, COMPARISON
from outlier_features.dims.dims_schema import DIMS
from outlier_features.errors import InputError
from outlier_features.files.artifacts import read_json
from outlier_features.files.tables import provenance_of, read_table, write_table
from outlier_features.model_name import split_name

Key = tuple[str, str, str]  # population, rule, sites


def compare_runs(runs: Sequence[Path], comparison: Path, common_dims: Path) -> None:
    """Write `comparison`, a row for every two runs of one model, population, rule and sites, and `common_dims`.

    runs   directories `<results>/<model>/<corpus>`
    """
    counts, models = {run: dim_counts(run) for run in runs}, {run: model_of(run) for run in runs}
    rows, dims = [], []
    for one, other in combinations(runs, 2):
        if not models[one].has_dims_of(models[other]):
            continue
        names = {"first": name_of(one), "second": name_of(other)}
        for found in comparisons(counts[one], counts[other]):
            rows.append({**names, **found})
            dims += [{**names, **found, **row} for row in found["common_dims"]]
    provenance = {"runs": [name_of(run) for run in runs]}
    write_table(comparison, pl.DataFrame(rows, COMPARISON.schema), COMPARISON, provenance)
    write_table(common_dims, pl.DataFrame(dims, COMMON_DIMS.schema), COMMON_DIMS, provenance)


@dataclass(frozen=True)
class Model:
    """What a run ran: its name without a revision, where it is from, and which residual stream is meant.

    is_known   not for a dump, which says nothing of its model
    """

    name: str
    origins: frozenset[str]
    stream: tuple[object, ...]
    is_known: bool

    def has_dims_of(self, other: "Model") -> bool:
        """Whether dim h of one is dim h of the other: in one model's corpora, dtypes and revisions, and in no two
        models; of a dump that is for its user to know."""
        one = self.name == other.name or bool(self.origins & other.origins)
        return self.stream == other.stream and (one or not (self.is_known and other.is_known))


def model_of(run: Path) -> Model:
    """The model of a run, from what its table of dims says of its origin."""
    facts = provenance_of(run / "dims.parquet", DIMS)
    known = "architecture" in facts
    origins = {str(facts[key]) for key in ("model_origin", "model_revision") if facts.get(key)}
    stream = (facts.get("part"), facts["d_model"], facts["blocks"] if known else None)
    return Model(split_name(facts["model"])[0], frozenset(origins), stream, known)


def name_of(run: Path) -> str:
    """`model/corpus`."""
    return f"{run.parent.name}/{run.name}"


def dim_counts(run: Path) -> dict[Key, dict[int, int]]:
    """Per population, rule and sites, the dims that a rule selects and how many occurrences each has.

    By rule `location` these are the dims with kept occurrences. Raises `InputError` where `run` is not a run.
    """
    if not (run / "dims.parquet").is_file():
        raise InputError(f"{run}: has no dims.parquet, expected the directory <results>/<model>/<corpus> of a run")
    rows, _ = read_table(run / "dims.parquet", DIMS)
    keys = rows.select("population", "rule", "sites").unique().rows()
    counts: dict[Key, dict[int, int]] = {
        key: dict(
            rows.filter(pl.col("selected"), population=key[0], rule=key[1], sites=key[2])
            .select("dim", "occurrences")
            .rows()
        )
        for key in keys
    }
    if (run / "locations.json").is_file():
        document = read_json(run / "locations.json", "populations")
        for population, part in document["populations"].items():
            for site, found in part["sites"].items():
                counts[population, "location", site] = {row["dim"]: row["count"] for row in found["dims"]}
    return counts


def comparisons(
    one: Mapping[Key, Mapping[int, int]], other: Mapping[Key, Mapping[int, int]]
) -> Iterator[dict[str, Any]]:
    """Of every population, rule and sites that both have: how many dims, how many in common, Jaccard index.

    `common_dims` has the dims in common with the smaller of their counts, the largest first, then by index.
    """
    for key in sorted(one.keys() & other.keys()):
        first, second = one[key], other[key]
        common = sorted(first.keys() & second.keys(), key=lambda dim: (-min(first[dim], second[dim]), dim))
        union = len(first.keys() | second.keys())
        yield {
            **dict(zip(("population", "rule", "sites"), key, strict=True)),
            "dims_first": len(first),
            "dims_second": len(second),
            "common": len(common),
            "jaccard": len(common) / union if union else None,
            "common_dims": [{"dim": dim, "min_count": min(first[dim], second[dim])} for dim in common],
        }
