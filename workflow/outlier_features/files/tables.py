"""Tables: what describes one, and how it is written and read.

Each stage describes those that it writes in a module `<name>_schema.py` of its package: every column's name, type, unit
and meaning. They go into the files' own field metadata and make `docs/tables.md`.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from outlier_features.errors import DamagedFile
from outlier_features.files.artifacts import PROVENANCE, Provenance
from outlier_features.files.sealed_parquet import SEAL, metadata_of, open_parquet, write_parquet

_BATCH = 1 << 16  # rows


@dataclass(frozen=True)
class Column:
    name: str
    dtype: Any
    meaning: str
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """A table; `row` says what a row is, `place` where it lies if not in `<name>.parquet` of a run."""

    name: str
    row: str
    columns: tuple[Column, ...]
    place: str | None = None

    @property
    def schema(self) -> dict[str, Any]:
        return {column.name: column.dtype for column in self.columns}

    def cast(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The table's columns of `frame`, in its order and types."""
        return frame.select(pl.col(name).cast(dtype) for name, dtype in self.schema.items())


@cache
def public_tables() -> dict[str, Table]:
    """All tables that the packages describe, by name."""
    package = Path(__file__).parents[1]
    modules = [f"{package.name}.{path.parent.name}.{path.stem}" for path in sorted(package.glob("*/*_schema.py"))]
    described = [one for module in modules for one in vars(import_module(module)).values() if isinstance(one, Table)]
    return {table.name: table for table in described}


def provenance_metadata(provenance: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a table's file that says where its rows come from."""
    return {PROVENANCE: json.dumps(provenance)}


def to_arrow(frame: pl.DataFrame, table: Table) -> pa.Table:
    """`frame` with the columns, types and metadata of `table`, in its order, all but its provenance."""
    arrow = table.cast(frame).to_arrow()
    fields = [
        field.with_type(pa.string()).with_metadata({"meaning": column.meaning, "unit": column.unit})
        if pa.types.is_large_string(field.type) or pa.types.is_string_view(field.type)
        else field.with_metadata({"meaning": column.meaning, "unit": column.unit})
        for field, column in zip(arrow.schema, table.columns, strict=True)
    ]
    return arrow.cast(pa.schema(fields, {"table": table.name, "row": table.row, **SEAL}))


def schema_of(table: Table) -> pa.Schema:
    """Names and types of a table's columns, as its files have them."""
    return to_arrow(pl.DataFrame(schema=table.schema), table).schema


def write_table(path: str | Path, frame: pl.DataFrame, table: Table, provenance: Mapping[str, Any]) -> None:
    write_parquet(path, to_arrow(frame, table), provenance_metadata(provenance))


def read_table(path: str | Path, table: Table) -> tuple[pl.DataFrame, Provenance]:
    """The rows of a table that this package wrote, and their provenance.

    Raises `InputError` where the file is damaged or is another table.
    """
    with _reading(path, table), open_parquet(path) as file:
        provenance = _checked(file, path, table)
        frame = pl.from_arrow(file.read())
    assert isinstance(frame, pl.DataFrame)
    return frame, provenance


def read_batches(path: str | Path, table: Table, layers: Collection[int] | None = None) -> Iterator[pl.DataFrame]:
    """The rows as `read_table` gives them, some at a time, first none: memory does not grow with the table.

    layers   of a table with a column of this name: what has none of these may be left out, and is not read
    """
    yield pl.DataFrame(schema=table.schema)
    with _reading(path, table), open_parquet(path) as file:
        _checked(file, path, table)
        groups = [*range(file.num_row_groups)]
        if layers is not None:
            column = file.schema.names.index("layer")
            groups = [n for n in groups if _may_have(file.metadata.row_group(n).column(column).statistics, layers)]
        for batch in file.iter_batches(_BATCH, row_groups=groups):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame


def _may_have(statistics: pq.Statistics | None, values: Collection[int]) -> bool:
    """Whether a part of a column may have one of these values, by its smallest and largest."""
    if statistics is None or not statistics.has_min_max:
        return True
    return any(statistics.min <= value <= statistics.max for value in values)


def provenance_of(path: str | Path, table: Table) -> Provenance:
    """Where the rows come from, without them."""
    with _reading(path, table), open_parquet(path) as file:
        return _checked(file, path, table)


@contextmanager
def _reading(path: str | Path, table: Table) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DamagedFile(path, f"expected the Parquet table {table.name!r}, found {error}") from error


def _checked(file: pq.ParquetFile, path: str | Path, table: Table) -> Provenance:
    metadata, columns = metadata_of(file), file.schema_arrow.names
    found, provenance = metadata["table"], Provenance(path, metadata[PROVENANCE])
    if found != table.name or columns != list(table.schema):
        raise DamagedFile(path, f"expected the table {table.name!r}, found {found!r} with columns {columns}")
    return provenance
