"""The tokens of a run: what was fed to the model, and where each token lies in the text."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlier_features import __version__
from outlier_features.errors import InputError
from outlier_features.files.artifacts import require_equal
from outlier_features.files.run_files import RunFiles
from outlier_features.files.tables import write_table
from outlier_features.files.tensorfile import TensorFile, write_tensors
from outlier_features.populations import position_parts
from outlier_features.tokens.texts_schema import TEXTS

Array = np.ndarray[Any, Any]
UNKNOWN = -1  # in `tokens`: what stood there is not known


@dataclass(frozen=True)
class Tokens:
    """tokens int32 (N, T), special and mask bool (N, T), offsets int32 (N, T, 2) in bytes of the sequence's text."""

    tokens: Array
    special: Array
    mask: Array
    offsets: Array
    provenance: dict[str, Any]

    @cached_property
    def files(self) -> RunFiles:
        """What else the run left, to be opened as files of these tokens' run."""
        files = RunFiles()
        files.require(self.provenance, getattr(self.provenance, "path", "the tokens"))
        return files

    @property
    def parts(self) -> Array:
        return position_parts(self.special, self.mask, self.provenance.get("first_token") != "ordinary")

    def token_id(self, sequence: int, position: int) -> int | None:
        """None where it is not known."""
        found = int(self.tokens[sequence, position])
        return None if found == UNKNOWN else found

    def head(self, sequences: int, tokens: int) -> "Tokens":
        """The first tokens of the first sequences, or as many as there are; the provenance is that of the whole."""
        names = ("tokens", "special", "mask", "offsets")
        return replace(self, **{name: getattr(self, name)[:sequences, :tokens] for name in names})

    def write(self, tokens: Path, texts: Path, text: Sequence[str]) -> None:
        """Write the files that every run begins with; their provenance is this one with `tokens_sha256`.

        text   of each sequence, what `offsets` are in
        """
        arrays = {"tokens": self.tokens, "special": self.special, "mask": self.mask, "offsets": self.offsets}
        provenance = {
            **self.provenance,
            "tokens_sha256": tokens_digest(self.tokens, self.special, self.mask),
            "package_version": __version__,
        }
        write_tensors(tokens, arrays, provenance)
        write_table(texts, pl.DataFrame({"sequence": range(len(text)), "text": text}), TEXTS, provenance)

    @classmethod
    def read(cls, path: str | Path) -> "Tokens":
        """What `write` left. Raises `InputError` where the file is damaged or its tokens are not the recorded ones."""
        file = TensorFile(path)
        arrays = {name: file.array(name) for name in ("tokens", "special", "mask", "offsets")}
        shape = arrays["tokens"].shape
        if any(array.shape[:2] != shape for array in arrays.values()):
            raise InputError(f"{path}: expected tokens, special, mask and offsets of one shape (N, T)")
        digest = tokens_digest(arrays["tokens"], arrays["special"], arrays["mask"])
        require_equal(file.provenance, {"tokens_sha256": digest}, ("tokens_sha256",), path)
        return cls(**arrays, provenance=file.provenance)


def tokens_digest(tokens: Array, special: Array, mask: Array) -> str:
    """What identifies a run's input: SHA-256 over shape, tokens, special and mask."""
    digest = hashlib.sha256(repr(tokens.shape).encode())
    for array, dtype in ((tokens, "<i4"), (special, "u1"), (mask, "u1")):
        digest.update(np.ascontiguousarray(array.astype(dtype)).tobytes())
    return digest.hexdigest()
