"""Scaled hits of a dump: against its own gains where it has them, with the reason where it does not."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from outlier_features.detect.detect_outliers import detect_outliers
from outlier_features.detect.detection import DetectionFiles, DetectionSettings
from outlier_features.detect.hits_schema import SCALED_HITS
from outlier_features.dump.dumps import Dump
from outlier_features.errors import InputError
from outlier_features.files.tables import read_table
from test_dumps import described, save, values

RMS = {"token_rms": 2.0, "layer_rms": 2.5}
SCALED = {"attn_norm": {"gain": 2.0}, "resid_post": RMS}
NO_COUNTS = {"pairs": {}, "listed": {}}


def scaled_hits(folder, dump, gain_keys=None, scaled=SCALED):
    """The table over all chunks, and what the provenance of the first says."""
    frames, provenances = [], []
    for index, where in enumerate(dump.chunks()):
        path = folder / f"scaled{index}.parquet"
        detect_outliers(
            where, replace(where, start=0, stop=1), folder / "tokens.safetensors",
            DetectionFiles(
                {site: folder / f"{site}{index}.parquet" for site in dump.sites}, path, folder / "pairs.parquet",
                folder / "positions.parquet", folder / f"statistics{index}.safetensors",
            ),
            DetectionSettings(dict.fromkeys(dump.sites, 50.0), 1.0, NO_COUNTS, scaled), threads=2,
            gain_keys=gain_keys or {},
        )  # fmt: skip
        frame, provenance = read_table(path, SCALED_HITS)
        frames.append(frame)
        provenances.append(provenance)
    return pl.concat(frames), provenances[0]


def expected(x, over, k):
    """Coordinates of the hits (sequence, layer, token, dim), and their values over the scale."""
    scaled = x.astype(np.float64) / over
    return np.argwhere(np.abs(scaled) >= k), scaled[np.abs(scaled) >= k]


def require(table, site, scale, x, over, k):
    rows = table.filter(site=site, scale=scale)
    places, scaled = expected(x, over, k)
    np.testing.assert_array_equal(rows.select("sequence", "layer", "token", "dim").to_numpy(), places)
    np.testing.assert_allclose(rows["scaled"], scaled, rtol=1e-12)
    np.testing.assert_array_equal(rows["value"], x[tuple(places.T)])
    assert len(places) and not rows["excluded"].any()


@pytest.mark.parametrize("where", ["rmsnorm_gammas/attn_norm", "mine"])
def test_hits_of_every_chunk_and_scale(tmp_path, monkeypatch, where):
    monkeypatch.setattr("outlier_features.dump.dumps._CHUNK_VALUES", 2 * 2 * 3 * 4 * 8)  # two sequences a chunk
    x, y = values(0), values(1)
    gains = np.random.default_rng(2).uniform(0.5, 3, (3, 8)).astype(np.float32)
    gains[1, 5] = 1e-6
    path = save(tmp_path / "dump.safetensors", a=x, b=y, **{where: gains})
    described(tmp_path, [path], {"attn_norm": "a", "resid_post": "b"})
    dump = Dump.open({"dump": [str(path)], "keys": {"attn_norm": "a", "resid_post": "b"}})
    table, provenance = scaled_hits(tmp_path, dump, {"attn_norm": "mine"} if where == "mine" else {})
    assert len(dump.chunks()) == 3
    usable = gains.astype(float)
    usable[1, 5] = np.inf
    require(table, "attn_norm", "gain", x, usable[None, :, None], 2.0)
    square = y.astype(np.float64) ** 2
    require(table, "resid_post", "token_rms", y, np.sqrt(square.mean(3, keepdims=True)), 2.0)
    require(table, "resid_post", "layer_rms", y, np.sqrt(square.mean((2, 3), keepdims=True)), 2.5)
    assert provenance["scaled"] == SCALED and provenance["without_scale"] == {}
    assert provenance["gains_left_out"] == {"attn_norm": {"1": [5]}}


@pytest.mark.parametrize("keys", [{}, {"mlp_norm": "g"}])
def test_without_gains_the_scale_is_absent_with_its_reason(tmp_path, keys):
    x = values(0)
    path = save(tmp_path / "dump.safetensors", a=x, g=np.ones((3, 8), np.float32))
    described(tmp_path, [path], {"attn_norm": "a"})
    dump = Dump.open({"dump": [str(path)], "keys": {"attn_norm": "a"}})
    scaled = {"attn_norm": {"gain": 2.0, "token_rms": 2.0}}
    table, provenance = scaled_hits(tmp_path, dump, keys, scaled)
    assert set(table["scale"]) == {"token_rms"} and provenance["scaled"] == {"attn_norm": {"token_rms": 2.0}}
    assert str(path) in provenance["without_scale"]["attn_norm"]["gain"]


def test_a_key_that_the_dump_lacks_is_an_error(tmp_path):
    path = save(tmp_path / "dump.safetensors", a=values(0))
    described(tmp_path, [path], {"attn_norm": "a"})
    dump = Dump.open({"dump": [str(path)], "keys": {"attn_norm": "a"}})
    with pytest.raises(InputError, match="has no tensor 'nothing'"):
        scaled_hits(tmp_path, dump, {"attn_norm": "nothing"})


def test_nothing_is_asked_and_nothing_is_written(tmp_path):
    path = save(tmp_path / "dump.safetensors", a=values(0))
    described(tmp_path, [path], {"attn_norm": "a"})
    table, provenance = scaled_hits(tmp_path, Dump.open({"dump": [str(path)], "keys": {"attn_norm": "a"}}), scaled={})
    assert not len(table) and provenance["scaled"] == {}
