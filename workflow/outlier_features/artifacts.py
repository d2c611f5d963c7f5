"""Files that a stage leaves: written whole or not at all, carrying their provenance."""

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outlier_features.errors import InputError

PROVENANCE = "provenance"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is renamed to `path`, on failure it is removed.

    Snakemake writes outputs in place and an orphaned job goes on writing, so a half-written file must never bear the
    final name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON file, found {type(error).__name__}: {error}") from error


def require_equal(
    expected: Mapping[str, Any], found: Mapping[str, Any], keys: tuple[str, ...], path: str | Path
) -> None:
    """Raise `InputError` where the provenance `found` in the file `path` contradicts `expected` in one of `keys`."""
    for key in keys:
        if expected.get(key) != found.get(key):
            raise InputError(
                f"{path}: its {key} is {found.get(key)!r}, expected {expected.get(key)!r}; it belongs to another run, "
                "delete it to have it made again"
            )
