"""The command `outlier-features compare`: all runs beside one another, or the dims in common of two of one model."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from outlier_features.command.count_tables import comparison_tables
from outlier_features.command.model_tables import read_models, write_models
from outlier_features.command.output import write_found
from outlier_features.compare.failures import read_failures
from outlier_features.dims.compare_runs import comparisons, dim_counts, model_of, name_of
from outlier_features.errors import InputError


def add_compare(compare: argparse.ArgumentParser) -> None:
    compare.description = (
        "Without a run: all runs of a directory of results, their size, loss, and by each rule how many dims and in "
        "which share of layers and positions, with intervals; of a model's revisions what they have by training step, "
        "and when each dim first passes. Of two runs of one model: the dims in common, and the Jaccard index."
    )
    compare.set_defaults(run=_compare)
    compare.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="two directories <results>/<model>/<corpus>")
    compare.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="of all runs (default: %(default)s)"
    )
    compare.add_argument("--plot", action="store_true", help="of all runs: draw the shares, too, in the terminal")
    compare.add_argument("--rule", metavar="NAME", help="only this rule")
    compare.add_argument("--format", choices=("table", "json", "csv"), default="table")
    compare.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to standard output")


def _compare(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if len(options.runs) not in (0, 2):
        parser.error(f"found {len(options.runs)} RUN, expected two, or none for all runs of a directory of results")
    if options.plot and (options.runs or options.format != "table"):
        parser.error("argument --plot: is of all runs as tables, without RUN and another --format")
    if options.runs:
        _compare_two(options)
    else:
        rows, failures = read_models(options.results, options.rule), read_failures(options.results / "comparison")
        write_models(rows, failures, options.results, options.format, options.output, plot=options.plot)


def _compare_two(options: argparse.Namespace) -> None:
    one, other = (run.resolve() for run in options.runs)
    counts, models = (dim_counts(one), dim_counts(other)), (model_of(one), model_of(other))
    if not models[0].has_dims_of(models[1]):
        raise InputError(
            f"found runs of two models, {models[0].name} in {one} and {models[1].name} in {other}, expected one's, "
            "for a dim of one model is none of another's; without RUN, compare shows all models beside one another"
        )
    found = [row for row in comparisons(*counts) if options.rule in (None, row["rule"])]
    if not found:
        named = {rule for _, rule, _ in counts[0].keys() & counts[1].keys()}
        wanted = "a rule" if options.rule is None else f"rule {options.rule}"
        there = f"; they have those of {', '.join(sorted(named))}" if named else ""
        raise InputError(f"{one} and {other}: have no population and sites in common of {wanted}{there}")
    document = {
        f"{row['rule']} {row['sites']} {row['population']}": {"keys": [name_of(one), name_of(other)], **_fields(row)}
        for row in found
    }
    write_found(document, lambda: _tables(document), options.format, options.output)


def _tables(document: Mapping[str, Any]) -> Iterator[Any]:
    for name, found in document.items():
        yield f"\nRule, sites, population: {name}"
        yield from comparison_tables(found, "Run")


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """As `outlier-features count` names them."""
    return {
        "dims": [row["dims_first"], row["dims_second"]],
        "common": row["common"],
        "jaccard": row["jaccard"],
        "top_common": row["common_dims"],
    }
