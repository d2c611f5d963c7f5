"""What a command found, as tables to read or as text, on standard output or in a file."""

import io
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from outlier_features.errors import InputError
from outlier_features.files.artifacts import replacing
from outlier_features.locate.count_document import to_csv, to_json

_WIDE = 1000  # a pipe has no width; tables are as wide as they need to be


def make_table(
    title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]], caption: str | None = None
) -> Table:
    table = Table(title=title, caption=caption, header_style="bold magenta")
    for index, column in enumerate(columns):
        table.add_column(column, style="cyan" if index == 0 else None, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def print_parts(parts: Iterable[Table | str], file: IO[str]) -> None:
    """Tables and lines of text: in colour on a terminal, plain in a pipe or a file."""
    console = Console(file=file, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = Console(file=file, markup=False, emoji=False, highlight=False, width=_WIDE)
    for part in parts:
        console.print(part)


def plain_parts(parts: Iterable[Table | str]) -> str:
    text = io.StringIO()
    print_parts(parts, text)
    return text.getvalue()


def write_found(
    document: Mapping[str, Any], parts: Callable[[], Iterable[Table | str]], form: str, output: Path | None
) -> None:
    """Write what a command found as `form`: table (its `parts`), json or csv; without `output` to standard output."""
    if form != "table":
        write_text({"json": to_json, "csv": to_csv}[form](document), output)
    elif output is None:
        print_parts(parts(), sys.stdout)
    else:
        write_text(plain_parts(parts()), output)
    sys.stdout.flush()


def write_text(text: str, output: Path | None) -> None:
    """Write to `output`, whole or not at all; without one to standard output."""
    if output is None:
        sys.stdout.write(text)
        return
    try:
        with replacing(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output}: cannot be written, {error.strerror}") from error
