"""The sequences of a run that a model is asked to run."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outlier_features.errors import InputError
from outlier_features.files.artifacts import require_equal
from outlier_features.files.tensorfile import write_tensors
from outlier_features.model.bases import SITES
from outlier_features.tokens.tokens import Tokens

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sequences:
    """Sequences to run: ids int32 and mask bool (n, T), from sequence `start` of the run on."""

    ids: Array
    mask: Array
    start: int = 0

    def tensors(self, rows: slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids int64 and mask bool (B, T) of some rows."""
        ids, mask = self.ids[rows].astype(np.int64), self.mask[rows].copy()
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)

    def batches(self, size: int, apart: bool) -> list[slice]:
        """Rows of each pass, in order; `apart`: full and padded sequences never share one."""
        full = [bool(row.all()) for row in self.mask]
        batches, start = [], 0
        for row in range(1, len(full) + 1):
            if row == len(full) or row - start == size or (apart and full[row] != full[start]):
                batches.append(slice(start, row))
                start = row
        return batches


@dataclass(frozen=True)
class Request:
    """Sequences of a run that a model is to run, and the sites that are wanted of them.

    start, stop   the first sequence and one past the last; equal where the run has none of those that were asked for

    Raises `InputError` where padding precedes tokens, or a site is not known.
    """

    run: Tokens
    tokens: Path
    model: dict[str, Any]
    sites: list[str]
    start: int
    stop: int

    def __post_init__(self) -> None:
        _check_request(self.run, self.tokens, self.sites)

    @classmethod
    def read(
        cls, source: Path, tokens: Path, *, start: int, stop: int, sites: list[str], sample: Mapping[str, Any] | None
    ) -> "Request":
        """source       the model's source.json
        tokens       the run's tokens.safetensors: N sequences of T tokens, padded on the right
        sites        names of `bases.SITES`
        sample       how the tokens must have been sampled, as the config says it; any way will do if None

        Raises `InputError` where these are not of one run, or as they must be.
        """
        run = Tokens.read(tokens)
        model = run.files.model(source)
        if sample is not None:
            require_equal({"sample": dict(sample)}, run.provenance, ("sample",), tokens)
        found = cls(run, tokens, model, sites, min(start, len(run.tokens)), min(stop, len(run.tokens)))
        if found.start == found.stop:
            print(f"the text has {len(run.tokens)} sequences, none is left for this chunk", file=sys.stderr)
        return found

    @property
    def place(self) -> dict[str, int]:
        """Where in the run it lies, for a provenance."""
        return {"start": self.start, "stop": self.stop, "sequences": len(self.run.tokens)}

    def sequences(self, start: int, stop: int) -> Sequences:
        return Sequences(self.run.tokens[start:stop], self.run.mask[start:stop], start)

    def write_nothing(self, *paths: Path) -> None:
        """Write files without tensors, for a chunk without sequences."""
        for path in paths:
            write_tensors(path, {}, {**self.run.provenance, **self.place})


def _check_request(run: Tokens, path: Path, sites: list[str]) -> None:
    require_padding_last(run, path)
    if unknown := sorted(set(sites) - set(SITES)):
        raise InputError(f"sites: found {unknown[0]!r}, expected names among {', '.join(SITES)}")


def require_padding_last(run: Tokens, path: Path | str) -> None:
    """Raise `InputError` where padding precedes tokens."""
    if (run.mask[:, 1:] > run.mask[:, :-1]).any():
        raise InputError(f"{path}: found padding before tokens, expected it at the end of each sequence")
