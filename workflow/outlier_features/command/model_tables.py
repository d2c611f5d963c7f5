"""All runs of a directory of results beside one another, in the terminal: as tables, and as shares drawn in text."""

import sys
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from outlier_features.command.output import make_table, plain_parts, print_parts, write_text
from outlier_features.command.training_tables import training_parts
from outlier_features.compare.models_schema import MODELS
from outlier_features.errors import InputError
from outlier_features.files.export_tables import write_csv
from outlier_features.files.tables import read_table
from outlier_features.visible_text import quoted, visible
from outlier_features.wording import DASH, number, percent

Row = Mapping[str, Any]
_WIDE = 60  # characters of the axis from 0 to 100 %
_SHARES = {"layer_share_mean": "Layer share", "position_share_mean": "Position share"}


def read_models(results: Path, rule: str | None) -> pl.DataFrame:
    """The table `models` of a directory of results, of one rule or of all."""
    path = results / "comparison/models.parquet"
    if not path.is_file():
        raise InputError(
            f"{path}: is not there, expected the table that rule compare_models writes where there are two runs or more"
        )
    rows = read_table(path, MODELS)[0]
    if rule is not None and rule not in rows["rule"]:
        there = ", ".join(rows["rule"].unique(maintain_order=True))
        raise InputError(f"{path}: has no rule {rule}, expected one of {there}")
    return rows if rule is None else rows.filter(rule=rule)


def write_models(
    rows: pl.DataFrame, failures: pl.DataFrame, results: Path, form: str, output: Path | None, *, plot: bool
) -> None:
    """Write the rows as `form`: json or csv, all columns and exact; table, what is read most, and with `plot` the
    shares; beside them, of a model with revisions, what they have by training step. The runs that failed stand below
    the tables; of another form, on standard error."""
    if form != "table":
        for row in failures.iter_rows(named=True):
            print(visible(f"{row['run']} failed in rule {row['rule']}: {row['reason']}"), file=sys.stderr)
    if form == "json":
        text = "\n".join(["[", rows.write_ndjson().rstrip("\n").replace("\n", ",\n"), "]\n"])
    elif form == "csv":
        file = BytesIO()
        write_csv(rows, file, header=True)
        text = file.getvalue().decode()
    else:
        plots = _plots(rows) if plot else ()
        parts = [*_tables(rows), *_failed(failures), *plots, *training_parts(rows, results, plot=plot)]
        if output is None:
            print_parts(parts, sys.stdout)
            return
        text = plain_parts(parts)
    write_text(text, output)


def _tables(rows: pl.DataFrame) -> Iterator[Any]:
    runs = rows.unique("run", keep="first", maintain_order=True).rows(named=True)
    yield make_table(
        "Runs",
        (
            "Run",
            "Parameters",
            "Active",
            "Blocks",
            "d_model",
            "Perplexity",
            "Bits per byte",
            "Sink rate",
            "Super weights",
        ),
        [
            (
                visible(row["run"]),
                *(number(row[name]) for name in ("parameters", "active_parameters", "blocks", "d_model")),
                *(_spread(row, name) for name in ("perplexity", "bits_per_byte")),
                percent(row["sink_rate"]),
                number(row["super_weights"]),
            )
            for row in runs
        ],
        "in parentheses the 95 % interval; perplexity compares models of one tokenizer, bits per byte all",
    )
    for rule, population, part in _grouped(rows):
        yield make_table(
            f"Rule {rule}, population {population}",
            ("Run", "Sites", "Dims", "Pairs", "Layer share", "Position share", "Largest |x|", "Where", "Published"),
            [
                (
                    visible(row["run"]),
                    visible(row["sites"].replace("+", " + ")),
                    *(number(row[name]) for name in ("dims", "pairs")),
                    *(_spread(row, name, percent) for name in _SHARES),
                    number(row["largest"]),
                    _where(row),
                    _published(row),
                )
                for row in part.iter_rows(named=True)
            ],
            "shares: mean over the selected dims",
        )


def _failed(failures: pl.DataFrame) -> Iterator[Any]:
    if len(failures):
        yield "\nFailed, so not compared:"
        for row in failures.iter_rows(named=True):
            yield visible(f"- {row['run']}: rule {row['rule']}: {row['reason']}; log: {row['log']}")


def _plots(rows: pl.DataFrame) -> Iterator[str]:
    """Per rule and population the shares of every run from 0 to 100 %, the smallest model first."""
    for rule, population, part in _grouped(rows):
        shown = part.filter(pl.col("dims").is_not_null() & pl.col("layer_share_mean").is_not_null())
        if shown.is_empty():
            continue
        lines = [f"\nRule {rule}, population {population}: shares of the selected dims, mean (●) and 95 % interval"]
        ordered = shown.sort("parameters", "run", nulls_last=True).rows(named=True)
        names = [f"{visible(row['run'])}, {_size(row['parameters'])}" for row in ordered]
        margin = max(map(len, names)) + 2
        for name, title in _SHARES.items():
            lines += ["", f"{title:<{margin}}{_scale()}"]
            lines += [f"{label:<{margin}}{_bar(row, name)}" for label, row in zip(names, ordered, strict=True)]
        yield "\n".join(lines)


def _grouped(rows: pl.DataFrame) -> Iterator[tuple[str, str, pl.DataFrame]]:
    for (rule, population), part in rows.group_by("rule", "population", maintain_order=True):
        yield str(rule), str(population), part


def _scale() -> str:
    marks = [" "] * (_WIDE + 6)
    for share in (0, 25, 50, 75, 100):
        text = f"{share} %"
        start = share * _WIDE // 100 - (0 if share == 0 else 1)
        marks[start : start + len(text)] = text
    return "".join(marks).rstrip()


def _bar(row: Row, name: str) -> str:
    value, low, high = (row[name + end] for end in ("", "_low", "_high"))
    line = ["|", *"·" * (_WIDE - 1), "|"]
    if low is not None:
        for place in range(_place(low), _place(high) + 1):
            line[place] = "─"
    line[_place(value)] = "●"
    return f"{''.join(line)} {percent(value)}"


def _place(share: float) -> int:
    return round(min(max(share, 0.0), 1.0) * _WIDE)


def _size(parameters: int | None) -> str:
    if parameters is None:
        return "size unknown"
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return str(parameters)


def _spread(row: Row, name: str, form: Any = number) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return form(row[name]) + ("" if low is None else f" ({form(low)} to {form(high)})")


def _where(row: Row) -> str:
    if row["largest_dim"] is None:
        return DASH
    layer = "" if row["largest_layer"] is None else f"{row['largest_site']} {row['largest_layer']}, "
    text = "" if row["largest_token_text"] is None else f" {quoted(row['largest_token_text'])}"
    token = "" if row["largest_token"] is None else f", token {row['largest_token']}{text}"
    return f"{layer}dim {row['largest_dim']}{token}"


def _published(row: Row) -> str:
    """Of the numbers that the rule's table shows."""
    names = {"dims": "dims", "sweep_pairs": "pairs by site tensors"}
    found = [
        f"{number(row[f'published_{name}'])} {title} (here {number(row[name])})"
        for name, title in names.items()
        if row[f"published_{name}"] is not None
    ]
    return ", ".join(found) or DASH
