"""Documents of a corpus, one text after the other, from what is on this machine.

A reader yields `str` in order; where it finds something else it raises `InputError`, naming the file and line or row.
"""

import csv
import gzip
import importlib
import io
import json
import zlib
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from outlier_features.errors import InputError

# A column is read by pages of this size, so that a few rows of a large row group do not cost all of it.
SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".csv", ".parquet")
_PAGES = 1 << 20
_BATCH = 256
_FIELD = 2**31 - 1  # characters of a field in CSV; the default is shorter than many a document


def read_stdlib(module: str) -> Generator[str]:
    """The values of the dictionary `topics` in a module of the standard library, in the order of its keys."""
    try:
        topics = importlib.import_module(module).topics
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"stdlib: this Python has no {module}.topics ({error}), expected CPython with its documentation"
        ) from error
    for key in sorted(topics):
        yield as_text(topics[key], f"{module}.topics[{key!r}]")


def file_kind(path: str | PurePath) -> str:
    """The suffix by which a file is read, without `.gz`; a file without one is text.

    Raises `InputError` where it is none of `SUFFIXES`.
    """
    name = PurePath(path).name.lower()
    kind = PurePath(name.removesuffix(".gz")).suffix or ".txt"
    if kind not in SUFFIXES or name.endswith(".parquet.gz"):
        known = f"{', '.join(SUFFIXES)}, all but the last also with .gz, or no suffix"
        raise InputError(f"files: {path} is of no known kind, expected {known}")
    return kind


def read_files(paths: Iterable[str], column: str) -> Generator[str]:
    """The texts of .txt and .md files and those without a suffix (a document each), and of .jsonl, .json, .csv and
    .parquet files (a document a row, from `column`); with .gz, of what is inside."""
    for path in map(Path, paths):
        kind = file_kind(path)
        try:
            with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
                if kind in (".txt", ".md"):
                    yield read_text(file, str(path))
                elif kind == ".parquet":
                    yield from read_parquet(file, column, str(path))
                elif kind == ".csv":
                    yield from read_csv(file, column, str(path))
                elif kind == ".json":
                    yield from read_json_rows(file, column, str(path))
                else:
                    yield from read_jsonl(file, column, str(path))
        except OSError as error:
            raise InputError(f"files: {path} cannot be read: {error.strerror or error}") from error


def read_text(file: Iterable[bytes], where: str) -> str:
    content = b"".join(_whole(file, where))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{where}, line {line}: expected UTF-8, found {_bytes(error)}") from error


def read_csv(file: Iterable[bytes], column: str, where: str) -> Iterator[str]:
    """Texts of one column of a CSV file whose first row names the columns."""
    csv.field_size_limit(_FIELD)
    rows = csv.DictReader(io.StringIO(read_text(file, where), newline=""), strict=True)
    try:
        if column not in (rows.fieldnames or ()):
            raise InputError(f"{where}: has no column {column!r}, found {_names(rows.fieldnames or ())}")
        for row in rows:
            yield as_text(row[column], f"{where}, line {rows.line_num}, column {column!r}")
    except csv.Error as error:
        raise InputError(f"{where}, line {rows.line_num}: expected CSV, found {error}") from error


def read_json_rows(file: Iterable[bytes], column: str, where: str) -> Iterator[str]:
    """Texts of a JSON array of objects or of strings, or of an object a line."""
    text = read_text(file, where)
    if not text.lstrip().startswith("["):
        yield from read_jsonl(text.encode().splitlines(), column, where)
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected a JSON array, found no JSON: {error}") from error
    for number, row in enumerate(rows):
        place = f"{where}, row {number}"
        if isinstance(row, dict):
            yield _of_column(row, column, place)
        else:
            yield as_text(row, place)


def read_jsonl(lines: Iterable[bytes], column: str, where: str) -> Iterator[str]:
    """Texts of the JSON objects in `lines`; blank lines are skipped."""
    for number, line in enumerate(_whole(lines, where), start=1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise InputError(f"{place}: expected UTF-8, found {_bytes(error)}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: expected a JSON object, found no JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{place}: expected a JSON object, found {type(row).__name__}")
        yield _of_column(row, column, place)


def _of_column(row: dict[str, Any], column: str, place: str) -> str:
    if column not in row:
        raise InputError(f"{place}: has no column {column!r}, found {_names(row)}")
    return as_text(row[column], f"{place}, column {column!r}")


def read_parquet(file: Any, column: str, where: str) -> Iterator[str]:
    """Texts of one column of a Parquet file, given as an open binary file; no more of it is read than is asked for."""
    try:
        parquet = pq.ParquetFile(file, buffer_size=_PAGES, pre_buffer=False)
        schema = parquet.schema_arrow
        if column not in schema.names:
            raise InputError(f"{where}: has no column {column!r}, found {_names(schema.names)}")
        if not _is_text(schema.field(column).type):
            raise InputError(f"{where}: column {column!r} is of type {schema.field(column).type}, expected string")
        row = 0
        for batch in parquet.iter_batches(_BATCH, columns=[column], use_threads=False):
            for value in batch.column(0):
                yield as_text(_python(value, where, row), f"{where}, row {row}, column {column!r}")
                row += 1
    except pa.ArrowException as error:
        raise InputError(f"{where}: expected a whole Parquet file, found {error}") from error


def as_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: expected a string, found {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: expected Unicode text, found half a surrogate pair at character {error.start}"
        ) from error
    return value


def _whole(lines: Iterable[bytes], where: str) -> Iterator[bytes]:
    try:
        yield from lines
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{where}: expected a whole gzip file, found {error}") from error


def _python(value: Any, where: str, row: int) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}, row {row}: expected UTF-8, found {_bytes(error)}") from error


def _is_text(dtype: Any) -> bool:
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype))


def _bytes(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} ({error.reason})"


def _names(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:10])) + (" and so on" if len(names) > 10 else "") or "none"
