"""The surface's cells against brute force over planted activations; kept or run again, of a model or a dump."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from outlier_features.detect.detect_outliers import detect_outliers
from outlier_features.detect.detection import DetectionFiles, DetectionSettings
from outlier_features.detect.summarize_layers import summarize_layers
from outlier_features.dims.dims_schema import DIMS
from outlier_features.dump.dumps import Dump
from outlier_features.errors import InputError
from outlier_features.files.tables import write_table
from outlier_features.files.tensorfile import TensorFile, write_tensors
from outlier_features.populations import EXCLUDED, PADDING, REST
from outlier_features.surface.pooling import largest_indices, pooled_ranges
from outlier_features.surface.record_surface import pool_surface, record_surface, selected_dims
from outlier_features.surface.rerun_largest import rerun_largest
from outlier_features.tokens.texts_schema import TEXTS
from outlier_features.tokens.tokens import Tokens
from test_dumps import described, save
from test_extract_activations import SETTINGS, Run

SELECTED = [0, 1, 4, 511, 512, 513, 599]
COUNTED = {"pairs": {}, "listed": {}}


def parts_of(t, specials=(), padding=0):
    parts = np.full(t, REST, np.uint8)
    parts[[0, *specials]] = EXCLUDED
    parts[t - padding :] = PADDING
    return parts


def planted(t, h, seed=0):
    """Normal values, with large ones at the borders and in padding's place."""
    x = np.random.default_rng(seed).standard_normal((t, h)).astype(np.float32)
    x[0, h - 1], x[t // 2, 0], x[t - 1, h // 2] = -5000, 700, 9000
    x[t // 3, 1 : min(h, 4)] = 300  # equal neighbours
    return x


@pytest.mark.parametrize(
    ("t", "h", "specials", "padding", "selected"),
    [(1, 3, (), 0, SELECTED), (7, 5, (3,), 2, []), (256, 512, (255,), 0, SELECTED), (257, 513, (), 0, []),
     (257, 513, (), 0, SELECTED), (300, 600, range(10, 290, 7), 11, SELECTED),
     (1001, 1301, (1, 500, 999), 1, SELECTED), (700, 64, range(0, 700, 2), 0, [])],
)  # fmt: skip
def test_cells_are_those_of_brute_force(t, h, specials, padding, selected):
    x, parts = planted(t, h), parts_of(t, specials, padding)
    selected = [dim for dim in selected if dim < h]
    cells = pool_surface(x, parts, selected)
    seen = np.zeros((t, h), int)
    for row in cells.iter_rows(named=True):
        tokens = np.arange(row["token_first"], row["token_last"] + 1)
        tokens = tokens[parts[tokens] == (EXCLUDED if row["excluded"] else REST)]
        dims = np.arange(row["dim_first"], row["dim_last"] + 1)
        block = x[np.ix_(tokens, dims)]
        seen[np.ix_(tokens, dims)] += 1
        assert row["max_abs"] == np.abs(block).max() == abs(row["value"])
        first = next((n, d) for n in tokens for d in dims if abs(x[n, d]) == row["max_abs"])
        assert (row["token"], row["dim"]) == first and row["value"] == x[first]
        assert row["selected"] == (len(dims) == 1 and dims[0] in selected)
    assert (seen == (parts != PADDING)[:, None]).all()
    assert cells.select("token_first", "excluded").n_unique() <= 256 and cells["dim_first"].n_unique() <= 512
    assert set(selected) <= set(cells.filter("selected")["dim_first"])
    if t <= 256 and h <= 512:
        assert len(cells) == (parts != PADDING).sum() * h
    for part in (EXCLUDED, REST):  # the largest stands alone
        if (parts == part).any():
            token, dim = np.unravel_index(np.where((parts == part)[:, None], np.abs(x), -1).argmax(), x.shape)
            alone = cells.filter(token_first=token, token_last=token, dim_first=dim, dim_last=dim)
            assert alone["value"].to_list() == [x[token, dim]]


def test_many_selected_dims_are_capped_at_the_largest():
    cells = pool_surface(planted(3, 900), parts_of(3), [*range(100, 900, 3)])
    assert set(cells.filter("selected")["dim_first"]) >= set(range(100, 100 + 3 * 64, 3))
    assert cells["dim_first"].n_unique() <= 512


def test_ranges_are_even_and_as_short_as_fits():
    own = np.zeros(100, bool)
    own[[0, 40, 41]] = True
    ranges = pooled_ranges(own, 30)
    lengths = np.diff(ranges, axis=1)[:, 0] + 1
    assert ranges[0, 0] == 0 and ranges[-1, 1] == 99 and (ranges[1:, 0] == ranges[:-1, 1] + 1).all()
    assert [lengths[list(ranges[:, 0]).index(i)] for i in (0, 40, 41)] == [1, 1, 1]
    assert lengths.max() == 4 and len(ranges) <= 30  # 39 and 58 others: in fours 10 + 15, in threes 13 + 20
    with pytest.raises(ValueError, match="do not fit"):
        pooled_ranges(np.ones(10, bool), 9)
    assert largest_indices(np.array([1.0, 3.0, -np.inf, 3.0]), 4).tolist() == [1, 3, 0]


RULES = {
    "dettmers": {"kind": "systematic", "sites": ["attn_norm", "mlp_norm"]},
    "dettmers_heads": {"kind": "systematic", "sites": ["attn_heads"]},
    "massive": {"kind": "massive"},
}
RUN = {"rules": RULES}


def test_selected_dims_are_those_of_the_sites_basis():
    rows = [("all", "massive", 7, True, 9.0), ("without_first", "dettmers", 5, True, 20.0),
            ("all", "dettmers", 6, False, 99.0), ("all", "dettmers_heads", 3, True, 8.0)]  # fmt: skip
    dims = pl.DataFrame(rows, schema=["population", "rule", "dim", "selected", "max_abs"], orient="row")
    assert selected_dims(dims, RUN, "resid_post") == selected_dims(dims, RUN, "mlp_norm") == [5, 7]
    assert selected_dims(dims, RUN, "attn_heads") == [3] and selected_dims(dims, RUN, "mlp_act") == []


@pytest.fixture
def recorded(tmp_path):
    """Statistics and texts of a run's activations, and its surface from some files."""

    def prepare(activations, sites):
        run = Tokens.read(tmp_path / "tokens.safetensors")
        parts = []
        for n, path in enumerate(activations):
            parts.append(tmp_path / f"statistics{n}.safetensors")
            detect_outliers(
                activations=path, first_chunk=activations[0], tokens=tmp_path / "tokens.safetensors",
                files=DetectionFiles(
                    {site: tmp_path / f"hits-{site}-{n}.parquet" for site in sites}, tmp_path / f"scaled{n}.parquet",
                    tmp_path / f"pairs{n}.parquet", tmp_path / f"positions{n}.parquet", parts[-1],
                ),
                settings=DetectionSettings(dict.fromkeys(sites, 4.0), 1.0, COUNTED), threads=1,
            )  # fmt: skip
        summarized = (
            tmp_path / "statistics.safetensors",
            tmp_path / "layers.parquet",
            tmp_path / "distribution.parquet",
            tmp_path / "site_positions.parquet",
        )
        summarize_layers(parts, *summarized)
        provenance = TensorFile(tmp_path / "statistics.safetensors").provenance | RUN
        write_table(tmp_path / "dims.parquet", pl.DataFrame(schema=DIMS.schema), DIMS, provenance)
        if not (tmp_path / "texts.parquet").exists():
            texts = pl.DataFrame({"sequence": range(len(run.tokens)), "text": [""] * len(run.tokens)})
            write_table(tmp_path / "texts.parquet", texts, TEXTS, run.provenance)

    def record(activations):
        named = {name: tmp_path / f"{name}.parquet" for name in ("texts", "dims", "surface")}
        record_surface(activations, tmp_path / "statistics.safetensors", tmp_path / "tokens.safetensors", **named)
        return pl.read_parquet(named["surface"])

    return SimpleNamespace(prepare=prepare, record=record)


def rerun(run: Run, dtype: str) -> Path:
    path = run.directory / "largest.safetensors"
    settings = {key: SETTINGS[key] for key in ("device", "attention", "threads", "trust_remote_code")}
    rerun_largest(run.source, run.tokens, run.directory / "statistics.safetensors", path, dtype=dtype, **settings)
    return path


@pytest.mark.parametrize(("name", "dtype", "lengths"), [
    ("llama", "float32", None), ("llama", "bfloat16", None), ("gpt2", "float32", [24, 9, 17, 24, 3]),
    ("bert", "float32", [24, 9, 17, 24, 3]), ("olmoe", "float32", None),
])  # fmt: skip
def test_run_again_it_is_the_same(name, dtype, lengths, tmp_path, recorded):
    """Bit by bit, whatever else was in the batch; no padding in it, and the largest of all sequences and layers."""
    run = Run(tmp_path, name, lengths=lengths)
    file, _ = run.extract(dtype=dtype, sites=["resid_post"])
    recorded.prepare([file.path], ["resid_post"])
    kept = recorded.record([file.path])
    again = recorded.record([rerun(run, dtype)])
    assert_frame_equal(kept, again, check_exact=True)
    assert kept.drop("token_text").null_count().sum_horizontal().item() == 0
    assert kept.select(pl.col("value", "max_abs").is_finite().all()).row(0) == (True, True)
    values = np.stack([file.array(f"resid_post.{layer}") for layer in range(4)])
    if dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    sizes = np.where(run.mask[:, :, None], np.abs(values), 0)
    layer, sequence, token, dim = np.unravel_index(sizes.argmax(), sizes.shape)
    top = kept.sort("max_abs", descending=True).row(0, named=True)
    assert (top["layer"], top["sequence"], top["token"], top["dim"]) == (layer, sequence, token, dim)
    assert kept["token"].max() == run.mask[sequence].sum() - 1
    expected = values[layer, sequence][run.mask[sequence]]
    np.testing.assert_array_equal(kept["value"].to_numpy().reshape(expected.shape), expected)


def test_a_run_without_resid_post_takes_the_site_with_the_largest(tmp_path, recorded):
    run = Run(tmp_path, "llama")
    file, _ = run.extract(sites=["attn_norm", "mlp_norm"])
    recorded.prepare([file.path], ["attn_norm", "mlp_norm"])
    surface = recorded.record([file.path])
    largest = {
        site: max(np.abs(file.array(f"{site}.{i}")).max() for i in range(4)) for site in ("attn_norm", "mlp_norm")
    }
    assert set(surface["site"]) == {max(largest, key=largest.get)} and surface["max_abs"].max() == max(largest.values())
    assert_frame_equal(surface, recorded.record([rerun(run, "float32")]), check_exact=True)


def test_another_value_than_the_statistics_have_is_refused(tmp_path, recorded):
    run = Run(tmp_path, "llama")
    file, _ = run.extract(sites=["resid_post"])
    recorded.prepare([file.path], ["resid_post"])
    arrays = {name: np.array(file.array(name)) * np.float32(1.01) for name in file.entries}
    write_tensors(file.path, arrays, file.provenance)
    with pytest.raises(InputError, match=r"activations.safetensors: the largest \|x\| of resid_post in layer \d"):
        recorded.record([file.path])
    write_tensors(file.path, {name: array[:1] for name, array in arrays.items()}, file.provenance | {"stop": 0})
    with pytest.raises(InputError, match="expected sequence"):
        recorded.record([file.path])


@pytest.mark.parametrize("layout", ["stacked", "layers"])
def test_a_dump_of_two_files(tmp_path, recorded, layout):
    x = np.random.default_rng(1).standard_normal((5, 3, 4, 8)).astype(np.float32)
    x[4, 2, 1, 6], x[3, 0, 0, 2] = -80, 79
    files = [save(tmp_path / f"{n}.safetensors", layout, acts=part) for n, part in enumerate((x[:2], x[2:]))]
    labels = tmp_path / "names.json"
    labels.write_text('["a", "b", "c", "d"]')
    described(tmp_path, files, {"attn_norm": "acts"}, "special", str(labels))
    dump = Dump.open({"dump": files, "keys": {"attn_norm": "acts"}})
    parts = [replace(dump.whole, stop=2), replace(dump.whole, start=2)]
    recorded.prepare(parts, ["attn_norm"])
    surface = recorded.record(parts)
    assert surface.select("site", "layer", "sequence").unique().rows() == [("attn_norm", 2, 4)]
    np.testing.assert_array_equal(surface["value"].to_numpy().reshape(4, 8), x[4, 2])
    top = surface.sort("max_abs").row(-1, named=True)
    assert (top["value"], top["token_text"], top["excluded"]) == (-80, "b", False)
    assert surface.filter("excluded")["token"].unique().to_list() == [0]
