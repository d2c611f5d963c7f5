"""The revisions of each model in the terminal: what each has, by training step, and when each dim first passes."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from outlier_features.command.output import make_table
from outlier_features.compare.first_steps_schema import FIRST_STEPS
from outlier_features.compare.revisions import same_weights
from outlier_features.files.tables import read_table
from outlier_features.visible_text import visible
from outlier_features.wording import DASH, number, some

_WIDE = 60  # characters of the axis of magnitudes
_KEYS = ("model", "corpus", "population")


def training_parts(rows: pl.DataFrame, results: Path, *, plot: bool) -> Iterator[Any]:
    """Tables of the revisions among `rows` of the table `models`, and with `plot` their magnitudes drawn in text."""
    revisions = rows.filter(pl.col("revision").is_not_null())
    if revisions.is_empty():
        return
    yield from same_weights(revisions.select("model", "revision", "same_weights_as").unique(maintain_order=True).rows())
    ordered = revisions.sort("step", nulls_last=True, maintain_order=True)
    for key, part in ordered.group_by(_KEYS, maintain_order=True):
        title = "Revisions of {} on {}, population {}".format(*map(visible, map(str, key)))
        yield _revisions(title, part)
        if plot:
            yield _magnitudes(title, part)
    steps = read_table(results / "comparison/first_steps.parquet", FIRST_STEPS)[0]
    for key, part in steps.filter(pl.col("rule").is_in(rows["rule"].unique().implode())).group_by(
        _KEYS, maintain_order=True
    ):
        yield _first_steps("When dims of {} first pass on {}, population {}".format(*map(visible, map(str, key))), part)


def _revisions(title: str, part: pl.DataFrame) -> Any:
    rules = part.select("rule", "sites").unique(maintain_order=True).rows()
    each = part.unique("run", keep="first", maintain_order=True)
    dims = {(run, rule, sites): found for run, rule, sites, found in part.select("run", "rule", "sites", "dims").rows()}
    names = [f"Dims by {rule}" + _at(rule, sites, rules) for rule, sites in rules]
    return make_table(
        title,
        ("Revision", "Step", "Perplexity", "Bits per byte", "Largest / median", *names, "Same weights as"),
        [
            (
                visible(row["revision"]),
                *(number(row[name]) for name in ("step", "perplexity", "bits_per_byte")),
                _magnitude(row),
                *(number(dims.get((row["run"], rule, sites))) for rule, sites in rules),
                visible(row["same_weights_as"] or ""),
            )
            for row in each.iter_rows(named=True)
        ],
        "largest |x| of a sequence on resid_post over the median, of the block where that is largest",
    )


def _at(rule: str, sites: str, rules: list[tuple[str, str]]) -> str:
    """The sites of a rule that has several, each with dims of its own."""
    return f" at {sites.replace('+', ' + ')}" if sum(name == rule for name, _ in rules) > 1 else ""


def _magnitude(row: Mapping[str, Any]) -> str:
    if row["largest_over_median"] is None:
        return DASH
    return f"{number(row['largest_over_median'])} in block {row['largest_over_median_layer']}"


def _magnitudes(title: str, part: pl.DataFrame) -> str:
    """A bar for each revision that stands for itself, from 1 to the largest, logarithmic."""
    known = part.unique("run", keep="first", maintain_order=True).filter(
        pl.col("largest_over_median") >= 1, pl.col("same_weights_as").is_null()
    )
    values = known.select("revision", "largest_over_median").rows()
    margin = max((len(revision) for revision, _ in values), default=0) + 2
    most = max((value for _, value in values), default=1.0)
    lines = [
        f"{visible(revision):<{margin}}{'█' * max(1, round(_WIDE * math.log(value) / math.log(max(most, 2))))} "
        f"{number(value)}"
        for revision, value in values
    ]
    return "\n".join([f"\n{title}: largest / median", *lines])


def _first_steps(title: str, part: pl.DataFrame) -> Any:
    at_once = part.group_by("rule", "sites", "first_step", "step_before", maintain_order=True).agg("dim")
    return make_table(
        title,
        ("Rule", "Sites", "First step", "Not yet at", "Dims"),
        [
            (
                visible(row["rule"]),
                visible(row["sites"].replace("+", " + ")),
                number(row["first_step"]),
                number(row["step_before"]),
                some(row["dim"], 12),
            )
            for row in at_once.iter_rows(named=True)
        ],
        "of the steps that were run; a dash: they pass at the first of these",
    )
