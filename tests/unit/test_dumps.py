"""A dump's headers, rows and labels, and the outliers that are found in it, against numpy."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from outlier_features.detect.detect_outliers import detect_outliers
from outlier_features.detect.detection import DetectionFiles, DetectionSettings
from outlier_features.detect.hits_schema import HITS
from outlier_features.dump.describe_dump import describe_dump
from outlier_features.dump.dumps import Dump
from outlier_features.errors import InputError
from outlier_features.fetch.fetch_model import fetch_model
from outlier_features.files.artifacts import write_json
from outlier_features.files.tables import read_table
from outlier_features.files.tensorfile import TensorFile
from outlier_features.scan.statistics import SiteStatistics, merge
from outlier_features.tokens.token_text import read_texts, token_text
from outlier_features.tokens.tokens import Tokens

SHAPE = (5, 3, 4, 8)


def values(seed=0, shape=SHAPE):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    x[..., 3] *= 9
    return x


def save(path, layout="stacked", dtype=torch.float32, **tensors):
    found = {}
    for key, x in tensors.items():
        tensor = torch.from_numpy(np.ascontiguousarray(x))
        if tensor.is_floating_point():
            tensor = tensor.to(dtype)
        if layout == "stacked" or tensor.ndim != 4:
            found[key] = tensor
        else:
            found |= {f"{key}.{layer}": tensor[:, layer].contiguous() for layer in range(tensor.shape[1])}
    save_file(found, path)
    return path


def described(folder, files, keys, first_token="ordinary", labels=None, tokenizer=None, **how):
    source = {"dump": [str(file) for file in files], "keys": keys, **how}
    fetch_model(source, folder / "model")
    describe_dump(
        "mine", folder / "model/source.json", folder / "tokens.safetensors", folder / "texts.parquet",
        source=source, first_token=first_token, labels=labels, tokenizer=tokenizer,
    )  # fmt: skip
    return Tokens.read(folder / "tokens.safetensors")


def detected(folder, dump, floor=4.0):
    """Hits and statistics of all chunks of a dump."""
    frames, statistics = [], []
    for index, where in enumerate(dump.chunks()):
        hits, path = folder / f"hits{index}.parquet", folder / f"statistics{index}.safetensors"
        detect_outliers(
            where, replace(where, start=0, stop=1), folder / "tokens.safetensors",
            DetectionFiles(
                {"attn_norm": hits}, *(folder / f"{name}.parquet" for name in ("scaled", "pairs", "positions")), path
            ),
            DetectionSettings({"attn_norm": floor}, 1.0, {"pairs": {}, "listed": {}}),
            threads=2,
        )  # fmt: skip
        frames.append(read_table(hits, HITS)[0])
        statistics.append(SiteStatistics.read(TensorFile(path), "attn_norm"))
    return pl.concat(frames), merge(statistics)


@pytest.mark.parametrize("layout", ["stacked", "per layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shards_are_joined_along_n_and_read_in_row_ranges(tmp_path, monkeypatch, layout, dtype):
    monkeypatch.setattr("outlier_features.dump.dumps._CHUNK_VALUES", 2 * 3 * 4 * 8)  # two sequences a chunk
    parts = [values(0), values(1, (2, *SHAPE[1:]))]
    files = [save(tmp_path / f"{i}.safetensors", layout, dtype, acts=x) for i, x in enumerate(parts)]
    keys = {"attn_norm": "acts"}
    described(tmp_path, files, keys)
    dump = Dump.open({"dump": files, "keys": keys})
    chunks = dump.chunks()
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert dump.files_of(2, 4) == [str(files[0])] and dump.files_of(4, 6) == [str(file) for file in files]
    x = torch.from_numpy(np.concatenate(parts)).to(dtype).float().numpy()
    hits, statistics = detected(tmp_path, dump)
    n, layer, t, h = np.nonzero(np.abs(x) >= 4)
    assert hits.select("sequence", "layer", "token", "dim").rows() == list(zip(n, layer, t, h, strict=True))
    assert hits["value"].to_list() == x[n, layer, t, h].tolist()
    assert not hits["excluded"].any()
    assert statistics.populations == ["all"]
    np.testing.assert_array_equal(statistics.max_abs("all"), np.abs(x).max(axis=(0, 2)))
    mean = statistics.channel_mean_square("all")[0]
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axis=(0, 2)), atol=1e-7)
    np.testing.assert_allclose(statistics.median[..., 0], np.median(np.abs(x), axis=(2, 3)).T, rtol=1e-7)


def test_a_special_first_token_makes_a_population_of_the_rest(tmp_path):
    file = save(tmp_path / "d.safetensors", acts=values())
    run = described(tmp_path, [file], {"attn_norm": "acts"}, first_token="special")
    hits, statistics = detected(tmp_path, Dump.open({"dump": [file], "keys": {"attn_norm": "acts"}}))
    assert statistics.populations == ["all", "without_first"]
    assert statistics.count("without_first") == 5 * 3
    assert hits["excluded"].to_list() == (hits["token"] == 0).to_list()
    assert run.token_id(0, 0) is None and token_text(read_texts(tmp_path / "texts.parquet", run), run, 0, 0) is None


def test_labels_of_a_key_and_of_a_file(tmp_path):
    boards = np.arange(20, dtype=np.int32).reshape(5, 2, 2)
    file = save(tmp_path / "d.safetensors", acts=values(), boards=boards)
    run = described(tmp_path, [file], {"attn_norm": "acts"}, labels="boards")
    texts = read_texts(tmp_path / "texts.parquet", run)
    shown = [[token_text(texts, run, n, t) for t in range(4)] for n in range(5)]
    assert shown == [[str(i) for i in row] for row in boards.reshape(5, 4)]
    assert run.token_id(4, 3) == 19
    (tmp_path / "names.json").write_text(json.dumps(["links", "où", "", "unten"]))
    run = described(tmp_path, [file], {"attn_norm": "acts"}, "special", str(tmp_path / "names.json"))
    texts = read_texts(tmp_path / "texts.parquet", run)
    assert [token_text(texts, run, 3, t) for t in range(4)] == ["links", "où", "", "unten"]
    assert run.token_id(0, 1) is None


def test_another_order_of_the_files_is_another_dump(tmp_path):
    files = [save(tmp_path / f"{i}.safetensors", acts=values(i)) for i in range(2)]
    one = described(tmp_path, files, {"attn_norm": "acts"}).provenance
    other = described(tmp_path, files[::-1], {"attn_norm": "acts"}).provenance
    assert one["model_revision"] != other["model_revision"]


def test_what_does_not_fit_is_one_sentence(tmp_path):
    x = values()
    good = save(tmp_path / "good.safetensors", acts=x, flat=x[0], short=x[:, :, :3], wide=np.concatenate([x, x], 3))
    save(tmp_path / "bf16.safetensors", dtype=torch.bfloat16, acts=x)
    save(tmp_path / "ints.safetensors", acts=x, names=np.zeros((5, 3), np.int32), floats=x[:, 0])
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-10])
    for files, keys, sentence in [
        (["good"], {"attn_norm": "act"}, "has no tensor 'act', nearest: acts"),
        (
            ["good"],
            {"attn_norm": "flat"},
            "flat has shape \\[3, 4, 8\\], whose axes may be TLH or LTH or NTH .*, expected layout",
        ),
        (
            ["good"],
            {"attn_norm": "acts", "mlp_norm": "short"},
            "short has .* \\(5, 3\\), expected \\(5, 4\\)",
        ),
        (["good", "bf16"], {"attn_norm": "acts"}, "acts is BF16 .*, expected F32"),
        (["cut"], {"attn_norm": "acts"}, "cut.safetensors: expected a whole safetensors file"),
        (["none"], {"attn_norm": "acts"}, "none.safetensors: expected a whole safetensors file"),
    ]:
        with pytest.raises(InputError, match=sentence):
            Dump.open({"dump": [tmp_path / f"{name}.safetensors" for name in files], "keys": keys})
    with pytest.raises(InputError, match="wide \\(mlp_norm\\) has 16 dims, expected 8"):
        described(tmp_path, [good], {"attn_norm": "acts", "mlp_norm": "wide"})
    for labels, sentence in [
        ("names", "labels names is I32 \\[5, 3\\], expected integers with 4 for each of 5 sequences"),
        ("floats", "labels floats is F32"),
        ("nothing", "has no tensor 'nothing'"),
    ]:
        with pytest.raises(InputError, match=sentence):
            described(tmp_path, [tmp_path / "ints.safetensors"], {"attn_norm": "acts"}, labels=labels)
    write_json(tmp_path / "names.json", ["one", "two"])
    with pytest.raises(InputError, match="expected a list of 4 texts as labels, or 5 such lists"):
        described(tmp_path, [good], {"attn_norm": "acts"}, labels=str(tmp_path / "names.json"))
