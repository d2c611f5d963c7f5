"""Rule compare_runs: which dims two runs of one model have in common, by each rule, and what each has in either."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl

from outlier_features.detect.layers_schema import LAYERS
from outlier_features.dims.comparison_schema import COMPARED_DIMS, COMPARISON
from outlier_features.dims.dims_schema import DIMS
from outlier_features.errors import InputError
from outlier_features.files.artifacts import read_json
from outlier_features.files.tables import provenance_of, read_table, write_table
from outlier_features.model_name import split_name
from outlier_features.rules.kinds import applied_sites, hit_rules

Key = tuple[str, str, str]  # population, rule, sites


@dataclass(frozen=True)
class DimHits:
    """What a dim has by a rule in a run; by rule `location`, which keeps or does not, no largest value."""

    selected: bool
    occurrences: int
    max_abs: float | None


Hits = Mapping[Key, Mapping[int, DimHits]]
_NONE = DimHits(selected=False, occurrences=0, max_abs=None)


def compare_runs(runs: Sequence[Path], comparison: Path, compared_dims: Path) -> None:
    """Write `comparison`, a row for every two runs of one model, population, rule and sites, and `compared_dims`.

    runs   directories `<results>/<model>/<corpus>`
    """
    hits, models = {run: dim_hits(run) for run in runs}, {run: model_of(run) for run in runs}
    rows, dims = [], []
    for one, other in combinations(runs, 2):
        if not models[one].has_dims_of(models[other]):
            continue
        names = {"first": name_of(one), "second": name_of(other)}
        for found in comparisons(hits[one], hits[other]):
            rows.append({**names, **found})
            dims += [{**names, **found, **row} for row in found["dims"]]
    provenance = {"runs": [name_of(run) for run in runs]}
    write_table(comparison, pl.DataFrame(rows, COMPARISON.schema), COMPARISON, provenance)
    write_table(compared_dims, pl.DataFrame(dims, COMPARED_DIMS.schema), COMPARED_DIMS, provenance)


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


def dim_hits(run: Path) -> dict[Key, dict[int, DimHits]]:
    """Per population, rule and sites, the dims with a hit by a rule that was applied, be it that none has one.

    By rule `location` these are the dims with kept occurrences. Raises `InputError` where `run` is not a run.
    """
    if not (run / "dims.parquet").is_file():
        raise InputError(f"{run}: has no dims.parquet, expected the directory <results>/<model>/<corpus> of a run")
    rows, facts = read_table(run / "dims.parquet", DIMS)
    applied = {name: applied_sites(rule, facts) for name, rule in hit_rules(facts["rules"]).items()}
    hits: dict[Key, dict[int, DimHits]] = {
        (population, rule, "+".join(sites)): {}
        for population in _populations(run, rows)
        for rule, sites in applied.items()
        if sites
    }
    for *key, dim, selected, occurrences, max_abs in rows.select(
        "population", "rule", "sites", "dim", "selected", "occurrences", "max_abs"
    ).iter_rows():
        hits.setdefault((key[0], key[1], key[2]), {})[dim] = DimHits(selected, occurrences, max_abs)
    if (run / "locations.json").is_file():
        document = read_json(run / "locations.json", "populations")
        for population, part in document["populations"].items():
            for site, found in part["sites"].items():
                kept = {row["dim"]: DimHits(True, row["count"], None) for row in found["dims"]}
                hits[population, "location", site] = kept
    return hits


def _populations(run: Path, dims: pl.DataFrame) -> list[str]:
    """Those of a run, also where no dim has a hit in one."""
    layers = run / "layers.parquet"
    rows = read_table(layers, LAYERS)[0] if layers.is_file() else dims
    return rows["population"].unique(maintain_order=True).to_list()


def comparisons(one: Hits, other: Hits) -> Iterator[dict[str, Any]]:
    """Of every population, rule and sites that both have: how many dims, how many in common, Jaccard index.

    `dims` has those that the rule selects in either run, as in table `compared_dims`: those of both first, then by the
    smaller and the larger of their numbers of occurrences, the largest first, then by index.
    """
    for key in sorted(one.keys() & other.keys()):
        first, second = one[key], other[key]
        mine, its = ({dim for dim, found in hits.items() if found.selected} for hits in (first, second))
        pairs = [(dim, first.get(dim, _NONE), second.get(dim, _NONE)) for dim in mine | its]
        yield {
            **dict(zip(("population", "rule", "sites"), key, strict=True)),
            "dims_first": len(mine),
            "dims_second": len(its),
            "common": len(mine & its),
            "jaccard": len(mine & its) / len(pairs) if pairs else None,
            "dims": [{"dim": dim, **_beside(*found)} for dim, *found in sorted(pairs, key=_order)],
        }


def _order(pair: tuple[int, DimHits, DimHits]) -> tuple[bool, int, int, int]:
    dim, first, second = pair
    less, more = sorted((first.occurrences, second.occurrences))
    return not (first.selected and second.selected), -less, -more, dim


def _beside(first: DimHits, second: DimHits) -> dict[str, Any]:
    return {
        f"{name}_{which}": getattr(found, name)
        for name in ("selected", "occurrences", "max_abs")
        for which, found in (("first", first), ("second", second))
    }
