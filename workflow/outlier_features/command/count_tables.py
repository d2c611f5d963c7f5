"""What was counted as tables to read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from outlier_features.command.output import make_table
from outlier_features.locate.count_document import COMPARISON

TOP = 10
_NONE = "-"
_BY = (
    ("layers", "Layer Outlier Occurrences", "Layer", "outliers"),
    ("first_layers", "First-Layer Appearance", "Layer", "locations"),
    ("tokens", "Token Position Outliers", "Token", "outliers"),
)


def count_tables(document: Mapping[str, Any], source: str, *, every: bool) -> Iterator[Table]:
    """With `every` each dim, layer and token; without, of each table the rows with the largest counts."""
    for key, content in document.items():
        yield from _compared(content, every) if key == COMPARISON else _of_key(key, content, source, every)


def _of_key(key: str, found: Mapping[str, Any], source: str, every: bool) -> Iterator[Table]:
    yield make_table(f"Activation Outliers ({key})", ("Metric", "Value"), _summary(key, found, source), _caption(found))
    top = found["dims"][:TOP]
    names = [
        ("Hidden dims", f"{found['shape'][3]:,}"),
        ("Dims with outliers", f"{len(found['dims']):,}"),
        (f"Top {len(top)} share", _percent(sum(row["share"] for row in top) if top else None)),
        (f"Outlier dims (first {len(top)})", ", ".join(str(row["dim"]) for row in top) or _NONE),
    ]
    yield make_table(f"Outlier Dimensions ({key})", ("Metric", "Value"), names)
    if top:
        columns = ("Rank", "Dim", "Count", "% of outliers", "Pos %", "Neg %", "One-sided")
        shown, rest = _largest(found["dims"], every)
        yield make_table(f"Top {len(shown)} Dimensions ({key})", columns, _dims(shown), rest)
    for name, title, noun, of in _BY:
        shown, rest = _largest(found[name], every)
        yield make_table(f"{title} ({key})", (noun, "Count", f"% of {of}"), _shares(shown), rest)
    magnitudes = found["magnitudes"]
    labels = {"min": "Min", "q1": "Q1 (25%)", "median": "Median (50%)", "q3": "Q3 (75%)", "max": "Max"}
    rows = [(label, _number(magnitudes, name)) for name, label in labels.items()]
    yield make_table(f"Outlier Magnitudes ({key})", ("Metric", "Value"), rows, _caption({"quantiles": magnitudes}))


def _largest(rows: Sequence[Mapping[str, Any]], every: bool) -> tuple[Sequence[Mapping[str, Any]], str | None]:
    """The rows with the largest counts, in their order, and how many others have any; with `every` all rows."""
    counted = [row for row in rows if row["count"]]
    if every or len(counted) <= TOP:
        return rows if every else counted, None
    kept = sorted(counted, key=lambda row: -row["count"])[:TOP]
    return [row for row in counted if row in kept], f"the {TOP} largest of {len(counted)}; --all has every one"


def comparison_table(found: Mapping[str, Any], noun: str = "Key") -> Table:
    """How many dims each of two keys or runs has, and how many they have in common."""
    rows = [
        (f"{noun} A", found["keys"][0]),
        (f"{noun} B", found["keys"][1]),
        ("Dims with outliers (A)", f"{found['dims'][0]:,}"),
        ("Dims with outliers (B)", f"{found['dims'][1]:,}"),
        ("Common dims", f"{found['common']:,}"),
        ("Jaccard (dims)", _percent(found["jaccard"])),
    ]
    return make_table(f"{noun} Comparison", ("Metric", "Value"), rows)


def _compared(found: Mapping[str, Any], every: bool) -> Iterator[Table]:
    yield comparison_table(found)
    top = found["top_common"] if every else found["top_common"][:TOP]
    if top:
        ranked = [(str(rank), str(row["dim"]), f"{row['min_count']:,}") for rank, row in enumerate(top, 1)]
        yield make_table("Top Common Outlier Dims (min count)", ("Rank", "Dim", "Min count"), ranked)


def _summary(key: str, found: Mapping[str, Any], source: str) -> list[tuple[str, str]]:
    fraction = found["min_layer_fraction"]
    return [
        ("Input", source),
        ("Key", key),
        ("Threshold", f"{found['threshold']:.4f}"),
        ("Min layer fraction", "none" if fraction is None else f"{fraction:.2%}"),
        ("Tensor shape", f"({', '.join(map(str, found['shape']))})"),
        (f"Elements {'>=' if found.get('inclusive') else '>'} threshold", f"{found['elements_over_threshold']:,}"),
        ("Outlier occurrences", f"{found['occurrences']:,}"),
        ("Outlier occurrence rate", _percent(found["occurrence_rate"], 4)),
        ("Outlier locations", f"{found['locations']:,}"),
        ("Outlier location rate", _percent(found["location_rate"], 4)),
        ("Mean layer-hit fraction (outliers)", _percent(found["mean_layer_fraction"])),
        ("Q1 (25%)", _number(found["quantiles"], "q1")),
        ("Median (50%)", _number(found["quantiles"], "median")),
        ("Q3 (75%)", _number(found["quantiles"], "q3")),
        ("IQR (Q3-Q1)", _number(found["quantiles"], "iqr")),
    ]


def _dims(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            str(rank),
            str(row["dim"]),
            f"{row['count']:,}",
            _percent(row["share"]),
            _percent(row["positive"] / row["count"]),
            _percent(row["negative"] / row["count"]),
            "yes" if row["one_sided"] else "no",
        )
        for rank, row in enumerate(rows, 1)
    ]


def _shares(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [(str(next(iter(row.values()))), f"{row['count']:,}", _percent(row["share"])) for row in rows]


def _percent(share: float | None, digits: int = 2) -> str:
    return _NONE if share is None else f"{share:.{digits}%}"


def _number(values: Mapping[str, Any], name: str) -> str:
    if values[name] is None:
        return _NONE
    error = values.get("standard_errors", {}).get(name)
    return f"{values[name]:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _caption(found: Mapping[str, Any]) -> str | None:
    samples = found["quantiles"].get("samples")
    return f"± standard error of a sample of {samples:,} values" if samples else None
