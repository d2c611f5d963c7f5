"""The losses of a run's sequences and tokens, from those of its chunks."""

import numpy as np
import pytest

from outlier_features.errors import InputError
from outlier_features.extract.loss_schema import LOSS
from outlier_features.extract.measure_loss import measure_loss
from outlier_features.files.tables import read_table
from outlier_features.files.tensorfile import TensorFile, write_tensors
from outlier_features.tokens.tokens import Tokens


def write_chunks(directory, no_loss=None):
    """Seven sequences, some of them padded, in chunks of three."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50, (7, 9)).astype(np.int32)
    mask = np.arange(9) < rng.integers(1, 10, 7)[:, None]
    ends = np.cumsum(np.ones((7, 9), np.int32), axis=1)
    offsets = np.stack([ends - 1, ends], axis=2).astype(np.int32)
    tokens = Tokens(ids, np.zeros_like(mask), mask, offsets, {"model": "tiny", "sequences": 7})
    tokens.write(directory / "tokens.safetensors", directory / "texts.parquet", ["x" * 9] * 7)
    nll, chunks = rng.random((7, 9)).astype(np.float32), []
    for start in range(0, 7, 3):
        stop = min(start + 3, 7)
        path = directory / f"{start}-{start + 2}.safetensors"
        facts = {
            **Tokens.read(directory / "tokens.safetensors").provenance,
            "start": start,
            "stop": stop,
            "no_loss": no_loss,
        }
        write_tensors(path, {"nll": nll[start:stop]}, facts)
        chunks.append(path)
    return chunks, nll, mask


def test_each_token_has_its_loss_and_what_is_not_predicted_none(tmp_path):
    chunks, nll, mask = write_chunks(tmp_path)
    table, of_tokens = tmp_path / "loss.parquet", tmp_path / "token_losses.safetensors"
    measure_loss(chunks, tmp_path / "tokens.safetensors", table, of_tokens)
    found = TensorFile(of_tokens).array("nll")
    assert found.dtype == np.float32 and found.shape == (7, 9)
    rows, _ = read_table(table, LOSS)
    for n in range(7):
        length = int(mask[n].sum())
        assert np.isnan(found[n, 0]) and np.isnan(found[n, length:]).all()
        assert np.array_equal(found[n, 1:length], nll[n, 1:length])
        assert rows["nll"][n] == pytest.approx(sum(map(float, nll[n, 1:length]))) and rows["tokens"][n] == length - 1


def test_a_model_without_losses_is_refused(tmp_path):
    chunks, _, _ = write_chunks(tmp_path, no_loss="it is an encoder")
    with pytest.raises(InputError, match="it is an encoder"):
        measure_loss(
            chunks, tmp_path / "tokens.safetensors", tmp_path / "loss.parquet", tmp_path / "losses.safetensors"
        )
