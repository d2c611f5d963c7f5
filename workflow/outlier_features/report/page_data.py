"""Data for the scripts of pages, in files beside them: columns as gzipped JSON in base64, within a number of bytes."""

import base64
import gzip
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from outlier_features.files.artifacts import sealed_script
from outlier_features.files.tables import Table

LONGEST_TEXT = 1000  # characters of a cell
_EXACT_INTEGERS = 2**53  # in JavaScript's numbers


def packed(frame: pl.DataFrame, columns: Mapping[str, Mapping[str, Any]] | None = None, **facts: Any) -> str:
    """A table as the page's scripts unpack it; it holds no character that HTML gives a meaning.

    columns   by name, what else a column is to the scripts: title, meaning, unit, hidden, kind, around
    facts     of the whole table

    Numbers are exact. Text is stored once however often it stands in its column; of one longer than 1,000 characters
    these are kept, and how long it was.
    """
    table = {
        **facts,
        "rows": len(frame),
        "columns": [{**_column(series), **(columns or {}).get(series.name, {})} for series in frame],
    }
    return gzipped(json.dumps(table, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def gzipped(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def write_data(folder: Path, name: str, content: Any) -> None:
    """Write what pages beside `folder` load by this name (load.js): a script, since one that was opened from disk may
    read no other file."""
    path = folder / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sealed_script(data_script(name, content)))


def data_script(name: str, content: Any) -> str:
    """A script that hands data to the page; text in it is text to any reader of HTML or JavaScript."""
    return f"beside.take({json.dumps(name)},{inert_json(content)});\n"


def inert_json(content: Any) -> str:
    """JSON that no parser of HTML or JavaScript can take for anything else."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=list)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def packed_within(
    frame: pl.DataFrame, text: str, most: int, columns: Mapping[str, Mapping[str, Any]]
) -> tuple[str, int]:
    """As many of the first rows as fit into so many bytes, packed, and how many they are; `text` is all of them."""
    rows = len(frame)
    while len(text) > most and rows:
        rows = min(rows - 1, int(0.97 * rows * most / len(text)))
        text = packed(frame.head(rows), columns)
    return text, rows


def described(table: Table) -> dict[str, dict[str, Any]]:
    """What `tables.py` says of each column."""
    return {column.name: {"meaning": column.meaning, "unit": column.unit} for column in table.columns}


def fair_shares(sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """Parts of a budget: what is small is whole, and what the small ones leave is shared equally among the others."""
    shares = {}
    for place, name in enumerate(sorted(sizes, key=lambda name: sizes[name])):
        shares[name] = min(sizes[name], budget // (len(sizes) - place))
        budget -= shares[name]
    return shares


def _column(series: pl.Series) -> dict[str, Any]:
    if series.dtype.is_integer() and not _is_beyond(series):
        return {"name": series.name, "kind": "integer", "values": series.to_list()}
    if series.dtype.is_float():
        return {"name": series.name, "kind": "number", "values": [_finite(value) for value in series.to_list()]}
    if series.dtype == pl.Boolean:
        return {"name": series.name, "kind": "boolean", "values": series.to_list()}
    text = series if series.dtype == pl.String else pl.Series(series.name, [*map(_text, series)], pl.String)
    text = text.to_frame().select(_cut(pl.first())).to_series()
    levels = text.drop_nulls().unique(maintain_order=True)
    places = {level: place for place, level in enumerate(levels)}
    return {"name": series.name, "kind": "text", "levels": [*places], "codes": [places.get(value) for value in text]}


def _is_beyond(series: pl.Series) -> bool:
    ends = (series.min(), series.max())
    return any(isinstance(end, int) and abs(end) > _EXACT_INTEGERS for end in ends)


def _finite(value: float | None) -> float | str | None:
    """JSON has no names for the numbers that are not finite."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _cut(text: pl.Expr) -> pl.Expr:
    length = text.str.len_chars()
    shorter = pl.format("{}… ({} characters)", text.str.head(LONGEST_TEXT), length)
    return pl.when(length > LONGEST_TEXT).then(shorter).otherwise(text)
