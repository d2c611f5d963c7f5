"""Files of a run are opened together only where they belong together."""

import json

import numpy as np
import polars as pl
import pytest

from outlier_features.errors import DamagedFile
from outlier_features.extract.loss_schema import LOSS
from outlier_features.files.run_files import RunFiles, require_whole
from outlier_features.files.tables import write_table
from outlier_features.files.tensorfile import write_tensors

TOKENS = {"model": "m", "model_revision": "1", "corpus": "c", "tokens_sha256": "ab"}
TABLE = {**TOKENS, "dtype": "float32", "sites": ["resid_post"]}


@pytest.fixture
def folder(tmp_path):
    write_tensors(tmp_path / "tokens.safetensors", {"tokens": np.zeros((1, 2), np.int32)}, TOKENS)
    write_table(tmp_path / "loss.parquet", pl.DataFrame(schema=LOSS.schema), LOSS, TABLE)
    (tmp_path / "model").mkdir()
    source = {"location": "model", "revision": "1", "files": {}}
    (tmp_path / "source.json").write_text(json.dumps(source))
    return tmp_path


def test_files_of_one_run_are_opened(folder):
    files = RunFiles()
    assert files.tensors(folder / "tokens.safetensors").array("tokens").shape == (1, 2)
    rows, provenance = files.table(folder / "loss.parquet", LOSS)
    assert len(rows) == 0 and provenance == TABLE
    assert files.model(folder / "source.json")["location"] == str((folder / "model").resolve())


@pytest.mark.parametrize("key", ["model", "tokens_sha256", "dtype", "sites"])
def test_what_only_some_of_the_files_say_is_compared_too(key, folder):
    """The tokens know no dtype, so the first table is what a later one is compared with."""
    write_table(folder / "other.parquet", pl.DataFrame(schema=LOSS.schema), LOSS, {**TABLE, key: "another"})
    files = RunFiles()
    files.tensors(folder / "tokens.safetensors")
    files.rows(folder / "loss.parquet", LOSS)
    said_first = "tokens.safetensors" if key in TOKENS else "loss.parquet"
    with pytest.raises(DamagedFile, match=rf"other\.parquet: its {key} .*{said_first}"):
        files.rows(folder / "other.parquet", LOSS)
    files.rows(folder / "loss.parquet", LOSS)  # what was refused is not remembered


def test_a_model_of_another_revision_is_refused(folder):
    (folder / "source.json").write_text(json.dumps({"location": "model", "revision": "2", "files": {}}))
    files = RunFiles()
    files.tensors(folder / "tokens.safetensors")
    with pytest.raises(DamagedFile, match=r"model_revision is '2', expected '1'"):
        files.model(folder / "source.json")


def test_a_chunk_holds_the_sequences_of_its_name(folder):
    write_tensors(folder / "04-07.safetensors", {}, {**TABLE, "start": 0, "stop": 4, "sequences": 8})
    with pytest.raises(DamagedFile, match="start"):
        RunFiles().tensors(folder / "04-07.safetensors")


def chunk(start, stop, **said):
    return f"{start}-{stop}", {"start": start, "stop": stop, "sequences": 8, "attention": "sdpa", **said}


def test_chunks_cover_the_run():
    require_whole([chunk(0, 3), chunk(3, 8)], same=("attention",))
    require_whole([chunk(0, 8)])


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(3, 8)],
        [chunk(0, 3)],
        [chunk(3, 8), chunk(0, 3)],
        [chunk(0, 3), chunk(4, 8)],
        [chunk(0, 4), chunk(3, 8)],
        [chunk(0, 3), chunk(3, 8, attention="eager")],
    ],
    ids=["first missing", "last missing", "order", "gap", "overlap", "run otherwise"],
)
def test_chunks_that_do_not_make_a_run_are_refused(chunks):
    with pytest.raises(DamagedFile):
        require_whole(chunks, same=("attention",))
