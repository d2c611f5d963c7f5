"""The gains of norms that a dump holds, beside the dims that a run of it selects."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from fake_run import FakeRun
from outlier_features.dump.dumps import Dump
from outlier_features.errors import InputError
from outlier_features.files.tables import read_table
from outlier_features.norms.check_dump_norms import check_dump_norms
from outlier_features.norms.norms_schema import GAINS, NORMS

D_MODEL = 64  # of the fake run


@pytest.fixture
def dump(tmp_path):
    rng = np.random.default_rng(0)
    gains = rng.uniform(0.5, 2, (4, D_MODEL)).astype(np.float32)
    gains[2] = 1
    gains[:, 5] = 0.01
    path = tmp_path / "dump.safetensors"
    save_file({
        "acts": np.zeros((2, 4, 3, D_MODEL), np.float32), "gains": gains,
        "rmsnorm_gammas/final": gains[2], "rmsnorm_gammas/q_norm": np.ones(8, np.float32),
    }, path)  # fmt: skip
    return path, gains


def checked(tmp_path, path, keys):
    run = FakeRun().write(tmp_path / "run")
    check_dump_norms(path, keys, run / "dims.parquet", tmp_path / "norms", tmp_path / "gains")
    return read_table(tmp_path / "norms", NORMS)[0], read_table(tmp_path / "gains", GAINS)[0]


def test_gains_of_a_site_by_layer(tmp_path, dump):
    path, gains = dump
    norms, at = checked(tmp_path, path, {"attn_norm": "gains"})
    assert norms["module"].to_list() == [f"attn_norm.{layer}" for layer in range(4)]
    assert norms["layer"].to_list() == [0, 1, 2, 3] and set(norms["site"]) == {"attn_norm"}
    assert norms["exactly_one"].to_list() == [int((row == 1).sum()) for row in gains]
    assert norms["mean"].to_list() == pytest.approx(gains.astype(np.float64).mean(axis=1), rel=1e-12)
    five = at.filter(population="all", rule="dettmers", dim=5).sort("layer")
    assert five["gain"].to_list() == pytest.approx(gains[:, 5].astype(np.float64))
    assert five["rank"].to_list() == [D_MODEL] * 4
    others = np.delete(np.abs(gains.astype(np.float64)), [5, 7], axis=1)
    assert five["ratio"].to_list() == pytest.approx(gains[:, 5] / np.median(others, axis=1))


def test_gains_under_the_keys_of_a_module(tmp_path, dump):
    norms, _ = checked(tmp_path, dump[0], {})
    assert norms.select("module", "residual", "all_one").rows() == [("final", True, False), ("q_norm", False, True)]
    assert Dump.open({"dump": [dump[0]], "keys": {"attn_norm": "acts"}}).has_gains


def test_what_is_not_there_is_one_sentence(tmp_path, dump):
    with pytest.raises(InputError, match="has no tensor 'none'"):
        checked(tmp_path, dump[0], {"attn_norm": "none"})
