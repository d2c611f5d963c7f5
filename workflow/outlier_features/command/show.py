"""The command `outlier-features show`: what runs found, in the terminal or for a program."""

import argparse
import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from outlier_features.command.output import make_table, write_found, write_text
from outlier_features.errors import InputError
from outlier_features.files.artifacts import read_json
from outlier_features.summary.facts import facts_in
from outlier_features.summary.summarize_run import DIM_COLUMNS, SUMMARY_KEYS
from outlier_features.visible_text import visible
from outlier_features.wording import DASH, count, number

Part = Mapping[str, Any]
_SUMMARY = "summary.json"


def add_show(show: argparse.ArgumentParser) -> None:
    show.description = (
        "Print what runs found: by population and rule how many dims, pairs, locations and occurrences, the selected "
        "dims, the largest values, the loss, what was not found and what is missing."
    )
    show.set_defaults(run=_show)
    show.add_argument("results", type=Path, metavar="RESULTS", help="a directory of results, or one run's directory")
    show.add_argument(
        "--format", choices=("table", "json", "csv"), default="table",
        help="table (default); json: each run's summary.json by model/corpus; csv: a line for each selected dim",
    )  # fmt: skip
    show.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to standard output")


def _show(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    summaries = read_summaries(options.results)
    if options.format == "csv":
        write_text(dims_csv(summaries), options.output)
    else:
        write_found(summaries, lambda: _parts(summaries), options.format, options.output)


def read_summaries(results: Path) -> dict[str, Part]:
    """The summary of each run in a directory of results, or of the run whose directory it is, by `model/corpus`."""
    paths = [results / _SUMMARY] if (results / _SUMMARY).is_file() else sorted(results.glob(f"*/*/{_SUMMARY}"))
    if not paths:
        raise InputError(
            f"{results}: found no {_SUMMARY} in it, expected a directory of results or that of a run, "
            "<results>/<model>/<corpus>"
        )
    read = [read_json(path, *SUMMARY_KEYS) for path in paths]
    return {f"{summary['model']['name']}/{summary['corpus']['name']}": summary for summary in read}


def dims_csv(summaries: Mapping[str, Part]) -> str:
    """A line for each dim that a rule selects; nulls are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "corpus", "population", "rule", "sites", *DIM_COLUMNS])
    for summary in summaries.values():
        names = summary["model"]["name"], summary["corpus"]["name"]
        for population, part in summary["populations"].items():
            for rule, found in part["rules"].items():
                for dim in found["dims"]:
                    values = [str(dim[name]).lower() if name == "one_sided" else dim[name] for name in DIM_COLUMNS]
                    writer.writerow([*names, population, rule, found["sites"], *values])
    return text.getvalue()


def _parts(summaries: Mapping[str, Part]) -> Iterator[Any]:
    for index, (name, summary) in enumerate(summaries.items()):
        yield ("\n" if index else "") + f"{name}: {_shape(summary)}"
        for population, positions in summary["corpus"]["positions"].items():
            yield f"\nPopulation {population}, {count(positions, 'position')}"
            yield from _tables(summary, population)
        for topic in ("prediction", "not found", "missing"):
            told = [fact for fact in facts_in(summary) if fact.topic == topic]
            said = [line for fact in told for line in (f"- {fact.text}", *(f"  - {part.text}" for part in fact.parts))]
            if said:
                yield "\n".join([f"{topic.capitalize()}:", *said])


def _shape(summary: Part) -> str:
    model, corpus = summary["model"], summary["corpus"]
    return visible(
        f"{model['architecture']}, {count(model['blocks'], 'layer')}, d_model {number(model['d_model'])}, "
        f"{count(corpus['sequences'], 'sequence')}"
    )


def _tables(summary: Part, population: str) -> Iterator[Any]:
    part = summary["populations"][population]
    rules = part["rules"]
    located = (summary["location"] or {"populations": {}})["populations"].get(population, {})
    yield make_table(
        "Selected, of those with a hit",
        ("Rule", "Sites", "Dims", "Pairs", "Locations", "Occurrences"),
        [
            *((rule, *_counts(found)) for rule, found in rules.items()),
            *((summary["location"]["rule"], visible(site), number(found["dims"]), DASH, number(found["locations"]),
               number(found["occurrences"])) for site, found in located.items()),
        ],
        "pairs: (sequence, dim); locations: (sequence, token, dim), of any dim",
    )  # fmt: skip
    if dims := [_dim(rule, dim, summary) for rule, found in rules.items() for dim in found["dims"]]:
        yield make_table(
            "Selected dims",
            ("Dim", "Rule", "Kind", "Max |x|", "Layers", "Steps", "Sequences"),
            dims,
            "layers: with a hit; steps: max |x| on resid_post rises to half its maximum, falls below",
        )
    yield make_table(
        "Largest |x| of each site",
        ("Site", "Layer", "Max |x|", "Median |x|"),
        [
            (visible(row["site"]), str(row["layer"]), number(row["max"]), number(row["median"]))
            for row in part["largest"]
        ],
    )


def _counts(found: Part) -> tuple[str, ...]:
    return (
        visible(found["sites"].replace("+", " + ")),
        f"{number(found['dims_selected'])} of {number(found['dims_with_hit'])}",
        f"{number(found['pairs_passing'])} of {number(found['pairs_with_hit'])}",
        number(found["locations"]),
        number(found["occurrences"]),
    )


def _dim(rule: str, dim: Part, summary: Part) -> tuple[str, ...]:
    return (
        str(dim["dim"]),
        rule,
        dim["kind"],
        number(dim["max_abs"]),
        f"{dim['first_layer']} to {dim['last_layer']}",
        DASH if dim["step_up"] is None else f"{dim['step_up']}, {number(dim['step_down'])}",
        f"{number(dim['sequences_passing'])} of {number(summary['corpus']['sequences'])}",
    )
