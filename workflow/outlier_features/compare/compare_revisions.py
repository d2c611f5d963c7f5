"""Rule compare_revisions: at which training step each dim of a model first passes.

Here dims are compared, since they are of one model: a dim's number means the same in each of its revisions.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from outlier_features.compare.first_steps_schema import FIRST_STEPS
from outlier_features.compare.models_schema import MODELS
from outlier_features.dims.compare_runs import DimHits, Key, dim_hits, name_of
from outlier_features.files.tables import read_table, write_table
from outlier_features.progress import item_bar

Row = dict[str, Any]


def compare_revisions(runs: Sequence[Path], models: Path, first_steps: Path) -> None:
    """Write `first_steps`.

    runs     directories `<results>/<model>/<corpus>`, of the models with revisions at least
    models   the table of rule compare_models, which says what each run's revision and step are

    Raises `InputError` where `runs` are no runs.
    """
    table, _ = read_table(models, MODELS)
    counting = table.filter(pl.col("step").is_not_null(), pl.col("same_weights_as").is_null())
    wanted = set(counting["run"])
    read = [run for run in runs if name_of(run) in wanted]
    hits = {name_of(run): dim_hits(run) for run in item_bar(read, "compare", "revision")}
    rows: list[Row] = []
    keys = ("model", "corpus", "rule", "sites", "population")
    for key, revisions in counting.group_by(keys, maintain_order=True):
        fixed: Row = dict(zip(keys, key, strict=True))
        rule_key: Key = (fixed["population"], fixed["rule"], fixed["sites"])
        steps = revisions.sort("step", maintain_order=True).select("step", "revision", "run").rows()
        found = [(step, revision, _selected(hits[run].get(rule_key, {}))) for step, revision, run in steps]
        rows += [fixed | row for row in _of_dims(found)]
    provenance = {"runs": [name_of(run) for run in read]}
    write_table(first_steps, pl.DataFrame(rows, FIRST_STEPS.schema), FIRST_STEPS, provenance)


def _selected(hits: Mapping[int, DimHits]) -> dict[int, int]:
    """The selected dims with their occurrences."""
    return {dim: found.occurrences for dim, found in hits.items() if found.selected}


def _of_dims(found: Sequence[tuple[int, str, dict[int, int]]]) -> Iterator[Row]:
    """Rows of one rule; `found` has the steps in order, each with its revision and with the hits by selected dim."""
    passing = {dim: [n for n, (_, _, dims) in enumerate(found) if dim in dims] for _, _, dims in found for dim in dims}
    for dim, places in sorted(passing.items(), key=lambda item: (item[1][0], item[0])):
        first, last = places[0], places[-1]
        yield {
            "dim": dim,
            "first_step": found[first][0],
            "first_revision": found[first][1],
            "step_before": found[first - 1][0] if first else None,
            "last_step": found[last][0],
            "steps_passing": len(places),
            "steps": len(found),
            "occurrences_first": found[first][2][dim],
            "occurrences_last": found[last][2][dim],
        }
