"""The files of one run: each is opened only if it says of the run what those opened before it say."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from outlier_features.errors import DamagedFile
from outlier_features.files.artifacts import SAME_RUN, Provenance, require_equal, require_sequences
from outlier_features.files.model_source import source_of
from outlier_features.files.tables import Table, read_table
from outlier_features.files.tensorfile import TensorFile


class RunFiles:
    """Opens the files of a run, and raises `DamagedFile` at the first that contradicts another.

    What identifies the run (`artifacts.SAME_RUN`) is compared as far as the files say it: tokens know no dtype yet, and
    only tables know the rules. A chunk's file must also hold the sequences that its name says.
    """

    def __init__(self) -> None:
        self._said: dict[str, tuple[Any, str | Path]] = {}

    def require(self, found: Mapping[str, Any], path: str | Path) -> None:
        """Raise `DamagedFile` where `found`, which the file `path` says, contradicts the files before it."""
        for key in SAME_RUN:
            if key in found:
                expected, where = self._said.setdefault(key, (found[key], path))
                if found[key] != expected:
                    raise DamagedFile(
                        path,
                        f"its {key} is {found[key]!r}, expected {expected!r} as in {where}; one of them belongs to "
                        "another run",
                    )
        require_sequences(found, path)

    def table(self, path: str | Path, table: Table) -> tuple[pl.DataFrame, Provenance]:
        frame, found = read_table(path, table)
        self.require(found, path)
        return frame, found

    def rows(self, path: str | Path, table: Table) -> pl.DataFrame:
        return self.table(path, table)[0]

    def tensors(self, path: str | Path) -> TensorFile:
        file = TensorFile(path)
        self.require(file.provenance, path)
        return file

    def model(self, source: Path, weights: bool = True) -> dict[str, Any]:
        """The record of the run's model, with its directory as `location` (`model_source.source_of`)."""
        record = source_of(source, weights)
        self.require({"model_revision": record["revision"]}, source)
        return record


def require_whole(chunks: Sequence[tuple[Any, Mapping[str, Any]]], same: tuple[str, ...] = ()) -> None:
    """Raise `DamagedFile` where chunks, in the order of their sequences, leave out or repeat one of the run's.

    chunks   path, or place in a dump, and provenance of each that has sequences; at least one
    same     further keys that all must have in common: how the model was run, say
    """
    _, first = chunks[0]
    covered = 0
    for where, found in chunks:
        require_equal(first, found, same, str(where))
        require_equal({"start": covered}, found, ("start",), str(where))
        covered = found["stop"]
    require_equal({"stop": first["sequences"]}, {"stop": covered}, ("stop",), str(where))
