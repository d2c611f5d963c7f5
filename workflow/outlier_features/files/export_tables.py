"""Rule export_tables: the public tables as CSV and JSON, for programs that read no Parquet."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import polars as pl

from outlier_features.files.artifacts import replacing_directory
from outlier_features.files.tables import Table, provenance_of, public_tables, read_batches
from outlier_features.progress import item_bar

DESCRIPTION = "tables.json"


def export_tables(tables: Mapping[str, Path], directory: Path) -> None:
    """Write `<name>.csv` and `<name>.json` for each of `tables` into `directory`, and what they say to `tables.json`.

    Floats have the shortest text that reads back as the same number; null is an empty field in CSV (an empty text is
    `""`), lists are JSON there. JSON is an array of records, one a line. Neither form is ever whole in memory.
    """
    with replacing_directory(directory) as temporary:
        described = {}
        for name, path in item_bar(tables.items(), "export", "table"):
            table = public_tables()[name]
            _export(path, table, temporary)
            described[name] = describe(table, provenance_of(path, table))
        text = json.dumps(described, indent=2, ensure_ascii=False)
        (temporary / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def describe(table: Table, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a row is, every column's type, unit and meaning, and where the rows come from."""
    columns = [
        {"name": column.name, "type": str(column.dtype), "unit": column.unit, "meaning": column.meaning}
        for column in table.columns
    ]
    return {"row": table.row, "columns": columns, "provenance": provenance}


def write_csv(frame: pl.DataFrame, file: IO[bytes], *, header: bool) -> None:
    """Rows as RFC 4180 has them."""
    lists = [name for name, dtype in frame.schema.items() if dtype == pl.List]
    as_text = [
        pl.Series(name, [None if one is None else json.dumps(one) for one in frame[name].to_list()], pl.String)
        for name in lists
    ]
    frame.with_columns(as_text).write_csv(file, include_header=header, line_terminator="\r\n")


def _export(path: Path, table: Table, directory: Path) -> None:
    with (directory / f"{table.name}.csv").open("wb") as csv, (directory / f"{table.name}.json").open("wb") as array:
        rows = 0
        array.write(b"[")
        for frame in read_batches(path, table):
            write_csv(frame, csv, header=rows == 0 and csv.tell() == 0)
            if len(frame):
                records = frame.write_ndjson().encode().rstrip(b"\n").replace(b"\n", b",\n")
                array.write((b",\n" if rows else b"\n") + records)
                rows += len(frame)
        array.write(b"\n]\n")
