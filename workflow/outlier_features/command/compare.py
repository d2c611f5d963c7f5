"""The command `outlier-features compare`: all runs beside one another, or two of one model dim by dim."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from outlier_features.command.count_tables import TOP, comparison_table
from outlier_features.command.model_tables import read_models, write_models
from outlier_features.command.output import make_table, write_found
from outlier_features.compare.differences import differences
from outlier_features.compare.failures import read_failures
from outlier_features.dims.compare_runs import comparisons, dim_hits, model_of, name_of
from outlier_features.errors import InputError
from outlier_features.files.artifacts import read_json
from outlier_features.summary.summarize_run import SUMMARY_KEYS
from outlier_features.wording import DASH, count, number

_WHICH = ("first", "second")


def add_compare(compare: argparse.ArgumentParser) -> None:
    compare.description = (
        "Without a run: all runs of a directory of results, their size, loss, and by each rule how many dims and in "
        "which share of layers and positions, with intervals; of a model's revisions what they have by training step, "
        "and when each dim first passes. Of two runs of one model (its corpora, dtypes, revisions): in which settings "
        "they differ, and by each rule that was applied in both what each dim has in either, how many are in common, "
        "and the Jaccard index."
    )
    compare.set_defaults(run=_compare)
    compare.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="two directories <results>/<model>/<corpus>")
    compare.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="of all runs (default: %(default)s)"
    )
    compare.add_argument("--plot", action="store_true", help="of all runs: draw the shares, too, in the terminal")
    compare.add_argument("--rule", metavar="NAME", help="only this rule")
    compare.add_argument("--all", action="store_true", help="of two runs: every dim, not the first ten of each rule")
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
    hits, models = (dim_hits(one), dim_hits(other)), (model_of(one), model_of(other))
    if not models[0].has_dims_of(models[1]):
        raise InputError(
            f"found runs of two models, {models[0].name} in {one} and {models[1].name} in {other}, expected one's, "
            "for a dim of one model is none of another's; without RUN, compare shows all models beside one another"
        )
    found = [row for row in comparisons(*hits) if options.rule in (None, row["rule"])]
    if not found:
        named = {rule for _, rule, _ in hits[0].keys() & hits[1].keys()}
        wanted = "a rule" if options.rule is None else f"rule {options.rule}"
        there = f"; they have those of {', '.join(sorted(named))}" if named else ""
        raise InputError(f"{one} and {other}: have no population and sites in common of {wanted}{there}")
    names = [name_of(one), name_of(other)]
    names = names if len({*names}) > 1 else [str(one), str(other)]  # of two directories of results
    document = {f"{row['rule']} {row['sites']} {row['population']}": {"keys": names, **_fields(row)} for row in found}
    write_found(
        document,
        lambda: [*_settings(one, other), *_tables(document, every=options.all)],
        options.format,
        options.output,
    )


def _settings(one: Path, other: Path) -> Iterator[Any]:
    """In which settings the runs differ, where they got as far as a summary."""
    paths = [run / "summary.json" for run in (one, other)]
    if not all(path.is_file() for path in paths):
        return
    table = differences([read_json(path, *SUMMARY_KEYS) for path in paths])
    settings = table.drop("run")
    rows = [(name, *(value or DASH for value in settings[name])) for name in settings.columns]
    if rows:
        yield make_table("What differs", ("Setting", *table["run"]), rows)
    else:
        yield "\nThe runs do not differ in any setting."


def _tables(document: Mapping[str, Any], *, every: bool) -> Iterator[Any]:
    """Of each rule how many dims, then the dims; rules that select nothing in either run in a sentence."""
    silent = [name for name, found in document.items() if not found["dims_of_either"]]
    for name, found in document.items():
        if name not in silent:
            yield f"\nRule, sites, population: {name}"
            yield comparison_table(found, "Run")
            yield from _dims(found["dims_of_either"], every=every)
    if silent:
        yield f"\nRule, sites, population that select no dim in either run: {'; '.join(silent)}"


def _dims(rows: Sequence[Mapping[str, Any]], *, every: bool) -> Iterator[Any]:
    shown = rows if every else rows[:TOP]
    columns = ("Dim", "A selects", "B selects", "Hits A", "Hits B", "Largest |x| A", "Largest |x| B")
    cells = [
        (
            str(row["dim"]),
            *("yes" if row[f"selected_{which}"] else "no" for which in _WHICH),
            *(number(row[f"{name}_{which}"]) for name in ("occurrences", "max_abs") for which in _WHICH),
        )
        for row in shown
    ]
    rest = len(rows) - len(shown)
    yield make_table("Dim by dim", columns, cells, f"{count(rest, 'more dim')}: --all" if rest else None)


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """As `outlier-features count` names them, and each dim of either."""
    common = [dim for dim in row["dims"] if dim["selected_first"] and dim["selected_second"]]
    return {
        "dims": [row["dims_first"], row["dims_second"]],
        "common": row["common"],
        "jaccard": row["jaccard"],
        "top_common": [
            {"dim": dim["dim"], "min_count": min(dim["occurrences_first"], dim["occurrences_second"])} for dim in common
        ],
        "dims_of_either": row["dims"],
    }
