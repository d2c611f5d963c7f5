"""A dump as a model: counted where it lies, without loss, beside a model that is run."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

SHAPE = (6, 4, 5, 32)


@pytest.fixture(scope="module")
def shards(project):
    rng = np.random.default_rng(3)
    parts = {}
    for name, count in (("a", 4), ("b", 2)):
        x = rng.standard_normal((count, *SHAPE[1:])).astype(np.float32)
        x[..., 9] = 10 + x[..., 9]
        x[:, 1:, 2, 20] = -50
        y = np.where(np.abs(x) > 6, x - 5, x)
        parts[name] = (x, y)
        save_file({"attn": x, "mlp": y}, project.folder / f"{name}.safetensors")
    return tuple(np.concatenate([parts[name][site] for name in "ab"]) for site in (0, 1))


def catalog(**changes):
    entry = {"dump": ["a.safetensors", "b.safetensors"], "keys": {"attn_norm": "attn", "mlp_norm": "mlp"}}
    return {
        "models": {"tiny": {"path": "llama"}, "saved": {**entry, **changes}},
        "corpora": {"text": {"files": ["text.txt"]}},
    }


def test_a_dump_beside_a_model(project, shards):
    # The model's run is the project's own, and is not run again.
    shutil.copytree(project.first / "results", project.folder / "both")
    shutil.copytree(project.first / "resources", project.folder / "both-resources")
    (project.folder / "both/report.html").unlink()
    config = {"models": ["tiny", "saved"], "catalog": catalog(layout="NLTH")}
    config |= {"results": "both", "resources": "both-resources"}
    before = (project.folder / "both/tiny/text/tokens.safetensors").stat().st_mtime_ns
    project.run_here(**config)
    assert (project.folder / "both/tiny/text/tokens.safetensors").stat().st_mtime_ns == before
    project.record(**config)
    folder = project.folder / "both/saved/dump"
    assert not (folder / "loss.parquet").exists() and (project.folder / "both/tiny/text/loss.parquet").exists()
    assert not list(folder.glob("activations*"))
    for table in ("layers", "dims", "pairs", "sensitivity", "emergence"):
        assert set(pl.read_parquet(folder / f"{table}.parquet")["population"]) == {"all"}
    x, y = shards
    dims = pl.read_parquet(folder / "dims.parquet").filter("selected", rule="dettmers")
    assert dims["dim"].to_list() == [9, 20]
    assert dims["occurrences"].to_list() == [
        int((np.abs(z[..., h]) >= 6).sum()) for h in (9, 20) for z in [np.stack([x, y])]
    ]
    located = json.loads((folder / "locations.json").read_text())["populations"]
    assert list(located) == ["all"]
    for site, z in (("attn_norm", x), ("mlp_norm", y)):
        found = located["all"]["sites"][site]
        hit = np.abs(z) > 6
        kept = hit & (hit.mean(axis=1, keepdims=True) >= 0.25)
        assert found["elements_over_threshold"] == hit.sum() and found["occurrences"] == kept.sum()
        assert found["locations"] == kept.any(axis=1).sum()
        assert {row["dim"]: row["count"] for row in found["dims"]} == {
            h: int(kept[..., h].sum()) for h in np.flatnonzero(kept.any(axis=(0, 1, 2)))
        }
        quartiles = np.quantile(z.astype(np.float64), [0.25, 0.5, 0.75])
        assert [found["quantiles"][name] for name in ("q1", "median", "q3")] == pytest.approx(quartiles, rel=1e-12)
    page = (project.folder / "both/report.html").read_text()
    assert "Dimensions in common" in page and "saved" in page
    assert project.planned(**config).nothing_to_do


def test_locations_of_a_run_are_those_of_its_activations(project):
    """Without the first position too; the kept file is the witness."""
    folder = project.folder / "results/tiny/text"
    located = json.loads((folder / "locations.json").read_text())["populations"]
    from outlier_features.files.tensorfile import TensorFile

    files = [TensorFile(path) for path in sorted((folder / "activations").glob("*"))]
    for site in ("attn_norm", "mlp_norm"):
        layers = [np.concatenate([file.array(f"{site}.{layer}") for file in files]) for layer in range(4)]
        whole = np.stack(layers, axis=1)
        for population, x in (("all", whole), ("without_first", whole[:, :, 1:])):
            found = located[population]["sites"][site]
            hit = np.abs(x) > 6
            kept = hit & (hit.mean(axis=1, keepdims=True) >= 0.25)
            assert found["occurrences"] == kept.sum()
            assert found["occurrence_rate"] == kept.sum() / x.size
            assert found["location_rate"] == kept.any(axis=1).sum() / x[:, 0].size
            first = 0 if population == "all" else 1
            assert [row["count"] for row in found["tokens"]][first:] == kept.sum(axis=(0, 1, 3)).tolist()
            quartiles = np.quantile(x.astype(np.float64), [0.25, 0.5, 0.75])
            assert [found["quantiles"][name] for name in ("q1", "median", "q3")] == pytest.approx(quartiles, rel=1e-12)
            assert found["magnitudes"]["max"] == (np.abs(x[kept]).max() if kept.any() else None)


def test_a_special_first_token_and_labels(project, shards):
    labels = [f"cell {t}" for t in range(SHAPE[2])]
    (project.folder / "names.json").write_text(json.dumps(labels))
    entry = catalog(first_token="special", labels="names.json", keys={"resid_post": "attn"})
    project.run_here(
        "tables", models=["saved"], catalog=entry, results="special",
        detect={"floors": {"resid_post": 10.0}, "max_density": 0.2},
        rules={"massive": {"threshold": 20.0, "ratio": 10.0}},
    )  # fmt: skip
    massive = pl.read_parquet(project.folder / "special/saved/dump/massive.parquet")
    assert set(massive["token_text"]) == {"cell 2"} and set(massive["dim"]) == {20}
    assert set(pl.read_parquet(project.folder / "special/saved/dump/layers.parquet")["population"]) == {
        "all",
        "without_first",
    }


@pytest.mark.parametrize("layout", ["a file a request", "a file a layer"])
def test_requests_of_different_length_in_files_as_others_write_them(project, layout):
    """A whole run: padding is in neither population, and a file of a chunk is an input of its job only."""
    rng = np.random.default_rng(1)
    lengths = [5, 2, 9]
    folder = project.folder / layout.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    x = [rng.standard_normal((3, length, 16)) for length in lengths]
    for one in x:
        one[:, :, 3] = 9
        one[1, -1, 8] = -30
    if layout == "a file a request":
        for n, one in enumerate(x):
            ids = np.arange(n, n + one.shape[1])
            tensors = {"hidden_states": np.ascontiguousarray(one.transpose(1, 0, 2)), "token_ids": ids}
            save_file(tensors, folder / f"req_{n}.safetensors")
        entry = {"dump": f"{folder.name}/req_*.safetensors", "keys": {"attn_norm": "hidden_states"},
                 "layers": [2, 5, 7], "labels": "token_ids"}  # fmt: skip
    else:
        for i, layer in enumerate((2, 5, 7)):
            tensors = {"acts": np.concatenate(x, axis=1)[i].copy(), "n": np.array(lengths)}
            save_file(tensors, folder / f"{layer}.safetensors")
        entry = {"dump": f"{folder.name}/{{layer}}.safetensors", "keys": {"attn_norm": "acts"}, "lengths": "n"}
    results = f"results-{folder.name}"
    sources = {**catalog(), "models": {"saved": entry}}
    project.run_here(models=["saved"], catalog=sources, results=results, detect={"max_density": 0.5})
    found = project.folder / results / "saved/dump"
    layers = pl.read_parquet(found / "layers.parquet")
    assert layers["layer"].to_list() == [2, 5, 7] and layers["positions"].to_list() == [16] * 3
    flat = np.concatenate(x, axis=1).astype(np.float32)
    assert layers["max"].to_list() == np.abs(flat).max(axis=(1, 2)).tolist()
    dims = pl.read_parquet(found / "dims.parquet").filter("selected", rule="dettmers").sort("dim")
    assert dims["dim"].to_list() == [3, 8]  # 8 in one of the three layers that were saved
    located = json.loads((found / "locations.json").read_text())["populations"]["all"]["sites"]["attn_norm"]
    assert located["positions"] == 16 and located["dtype"] == "float64"
    assert located["elements_over_threshold"] == (np.abs(flat) > 6).sum()
    positions = pl.read_parquet(found / "positions.parquet").sort("token")
    assert positions["sequences"].to_list() == [sum(length > t for length in lengths) for t in range(9)]
    assert (project.folder / results / "report.html").exists()
