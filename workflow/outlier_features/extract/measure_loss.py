"""Rule measure_loss: how well the model predicts the run's text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlier_features.errors import InputError
from outlier_features.extract.loss_schema import LOSS
from outlier_features.files.artifacts import holds_sequences
from outlier_features.files.run_files import require_whole
from outlier_features.files.tables import write_table
from outlier_features.files.tensorfile import TensorFileWriter
from outlier_features.norms.kept_norms import NORMS
from outlier_features.tokens.tokens import Tokens


def measure_loss(chunks: Sequence[Path], tokens: Path, loss: Path, token_losses: Path) -> None:
    """Write `loss`: per sequence the predicted tokens, the bytes of their text and their negative log-likelihood; and
    `token_losses` with the tensor `nll` float32 (N, T), that of each token, NaN where none is predicted.

    chunks   files with `nll` (n, T), nats of each token given what precedes

    Raises `InputError` where the files are of another run, or the model does not predict the next token.
    """
    run = Tokens.read(tokens)
    files = [file for file in map(run.files.tensors, chunks) if holds_sequences(file.provenance)]
    require_whole([(file.path, file.provenance) for file in files])
    for file in files:
        if file.provenance["no_loss"]:
            raise InputError(file.provenance["no_loss"])
    provenance = {key: value for key, value in files[-1].provenance.items() if key != NORMS} | {"start": 0}
    frames = []
    with TensorFileWriter(token_losses, {"nll": ("F32", run.mask.shape)}, provenance) as of_tokens:
        for file in files:
            start, stop = (file.provenance[key] for key in ("start", "stop"))
            nll = file.array("nll")
            frames.append(loss_rows(run, start, stop, nll))
            of_tokens.write("nll", start, np.where(_predicted(run, start, stop), nll, np.float32(np.nan)))
    write_table(loss, pl.concat(frames), LOSS, provenance)


def _predicted(run: Tokens, start: int, stop: int) -> np.ndarray[Any, Any]:
    predicted = run.mask[start:stop].copy()
    predicted[:, 0] = False
    return predicted


def loss_rows(run: Tokens, start: int, stop: int, nll: np.ndarray[Any, Any]) -> pl.DataFrame:
    predicted = _predicted(run, start, stop)
    offsets = run.offsets[start:stop]
    first = np.where(predicted, offsets[:, :, 0], np.iinfo(np.int32).max).min(axis=1)
    last = np.where(predicted, offsets[:, :, 1], 0).max(axis=1)
    return pl.DataFrame(
        {
            "sequence": np.arange(start, stop),
            "tokens": predicted.sum(axis=1),
            "bytes": np.where(predicted.any(axis=1), np.maximum(last - np.minimum(first, last), 0), 0),
            "nll": np.where(predicted, nll, 0).sum(axis=1, dtype=np.float64),
        },
        schema=LOSS.schema,
        strict=False,
    )
