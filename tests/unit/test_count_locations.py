"""Counting by locations against brute force in numpy."""

import math
import os
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from outlier_features.dump.dumps import DumpFile, find_site
from outlier_features.errors import InputError
from outlier_features.files.tensorfile import TensorFile
from outlier_features.locate import count_kernel
from outlier_features.locate import count_locations as module
from outlier_features.locate.count_document import comparison_document, count_document
from outlier_features.locate.count_locations import LocationRule, compare_dims, count_locations
from outlier_features.locate.quantiles import quartiles_of_values
from outlier_features.locate.slabs import slabs_of, work_through

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def site_tensors(path, key):
    return find_site([DumpFile(TensorFile(path))], key)


def activations(shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    x[..., 1] *= 6
    x[..., shape[3] // 2] += np.linspace(2, 9, shape[1], dtype=np.float32)[None, :, None]
    x[rng.random(shape) < 0.05] = 6.0
    x[rng.random(shape) < 0.02] = -6.0
    x[rng.random(shape) < 0.02] = -0.0
    return x


def save(path, x, dtype="float32", layout="stacked", key="acts"):
    tensor = torch.from_numpy(x).to(DTYPES[dtype])
    if layout == "stacked":
        save_file({key: tensor}, path)
    else:
        save_file({f"{key}.{layer}": tensor[:, layer].contiguous() for layer in range(x.shape[1])}, path)
    return site_tensors(path, key), tensor.float().numpy()


def brute(x, dtype, threshold, inclusive, fraction):
    n, layers, t, h = x.shape
    magnitude = np.abs(x)
    over = magnitude >= np.float32(threshold) if inclusive else magnitude > np.float32(threshold)
    needed = max(1, math.ceil(Fraction(str(fraction or 0)) * layers))
    kept_locations = over.sum(axis=1) >= needed
    kept = over & kept_locations[:, None]
    found, locations = int(kept.sum()), int(kept_locations.sum())
    first = over.argmax(axis=1)[kept_locations]

    def share(part, whole):
        return part / whole if whole else None

    def rows(label, counts, whole):
        return [{label: i, "count": int(c), "share": share(int(c), whole)} for i, c in enumerate(counts)]

    q1, median, q3 = np.quantile(x.astype(np.float64), (0.25, 0.5, 0.75), method="linear").tolist()
    counts, positive, negative = ((kept & sign).sum(axis=(0, 1, 2)) for sign in (x == x, x > 0, x < 0))
    dims = sorted(np.flatnonzero(counts).tolist(), key=lambda dim: (-counts[dim], dim))
    values = magnitude[kept].astype(np.float64)
    levels = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist() if found else [None] * 5
    return {
        "shape": list(x.shape),
        "dtype": dtype,
        "threshold": threshold,
        **({"inclusive": True} if inclusive else {}),
        "min_layer_fraction": fraction,
        "elements_over_threshold": int(over.sum()),
        "occurrences": found,
        "occurrence_rate": found / x.size,
        "locations": locations,
        "location_rate": locations / (n * t * h),
        "mean_layer_fraction": share(found, locations * layers),
        "quantiles": {"q1": q1, "median": median, "q3": q3, "iqr": q3 - q1},
        "dims": [
            {
                "dim": dim,
                "count": int(counts[dim]),
                "share": int(counts[dim]) / found,
                "positive": int(positive[dim]),
                "negative": int(negative[dim]),
                "one_sided": bool(100 * max(positive[dim], negative[dim]) >= 95 * counts[dim]),
            }
            for dim in dims
        ],
        "layers": rows("layer", kept.sum(axis=(0, 2, 3)), found),
        "first_layers": rows("layer", np.bincount(first, minlength=layers), locations),
        "tokens": rows("token", kept.sum(axis=(0, 1, 3)), found),
        "magnitudes": dict(zip(("min", "q1", "median", "q3", "max"), levels, strict=True)),
    }


def counted(site, threshold=6.0, inclusive=False, fraction=0.25, **options):
    return count_document(count_locations([site], LocationRule(threshold, inclusive, fraction), threads=2, **options))


@pytest.mark.parametrize("layout", ["stacked", "per_layer"])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("shape", [(7, 8, 5, 24), (3, 70, 2, 9), (40, 1, 3, 5), (1, 3, 33, 17)])
def test_every_number_equals_brute_force(tmp_path, monkeypatch, shape, dtype, layout):
    site, x = save(tmp_path / "a.safetensors", activations(shape), dtype, layout)
    monkeypatch.setattr(module, "_SLAB_VALUES", 2 * math.prod(shape[1:]))
    for threshold, inclusive, fraction in [
        (6.0, False, 0.25),
        (6.0, True, 0.25),
        (2.5, False, None),
        (0.1, False, 0.07),
        (0.0, True, 1.0),
        (0.0, False, 0.0),
        (1e9, False, 0.25),
    ]:
        assert counted(site, threshold, inclusive, fraction) == brute(x, dtype, threshold, inclusive, fraction)


SPECIAL = np.array(
    [0, -0.0, 1e-45, -1e-45, 1.2e-38, -1e-39, 6, -6, 6.0000005, 5.9999995, 0.1, 6e-8, 65504, -65504, 3.4e38, -3.4e38],
    np.float32,
)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("seed", range(12))
def test_special_values_and_thresholds_equal_brute_force(tmp_path, seed, dtype):
    """Zeros of both signs, subnormals, the threshold and its neighbours, the largest values; few values, or one."""
    rng = np.random.default_rng(seed)
    shape = (rng.integers(1, 9), rng.choice([1, 3, 24, 70]), rng.integers(1, 6), rng.integers(1, 70))
    x = rng.standard_normal(shape).astype(np.float32)
    special = SPECIAL if dtype == "float32" else SPECIAL[:14]  # the others overflow in float16
    chosen = rng.random(shape) < rng.choice([0.1, 0.5, 1])
    x[chosen] = rng.choice(special, chosen.sum()) if seed % 4 else rng.choice(special)
    site, x = save(tmp_path / "a.safetensors", x, dtype, ["stacked", "per_layer"][seed % 2])
    for threshold in (0.0, 1e-45, 0.1, 6.0, 6.0000001, 65504.0, 3.4e38):
        for inclusive in (False, True):
            fraction = rng.choice([None, 0.0, 0.07, 0.3, 1.0])
            with np.errstate(over="ignore", under="ignore"):
                expected = brute(x, dtype, threshold, inclusive, fraction)
            assert counted(site, threshold, inclusive, fraction) == expected


@pytest.mark.parametrize("shape", [(1, 2, 70_000, 3), (2, 1, 3, 70_000), (1, 300, 2, 5), (3000, 2, 1, 1), (1, 1, 1, 1)])
def test_long_sequences_wide_layers_and_single_values(tmp_path, shape):
    x = activations(shape) if shape[3] > 1 else np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 6
    for layout in ("stacked", "per_layer"):
        site, _ = save(tmp_path / layout, x, layout=layout)
        assert counted(site, fraction=0.5) == brute(x, "float32", 6.0, False, 0.5)


@pytest.mark.parametrize("layout", ["stacked", "per_layer"])
@pytest.mark.parametrize("values", [1, 7, 30, 200, 10**6])
def test_slabs_have_every_value_once(tmp_path, layout, values):
    x = np.arange(5 * 3 * 4 * 6, dtype=np.float32).reshape(5, 3, 4, 6)
    site, _ = save(tmp_path / "a.safetensors", x, layout=layout)
    seen = []
    for slab in slabs_of(site, values):
        buffer = np.zeros(slab.values, np.uint32)
        starts = slab.read(buffer)
        cells = x.reshape(5, 3, 24)[slab.first : slab.last, :, slab.begin : slab.end]
        assert slab.values == cells.size <= max(values, 3) and slab.nbytes == 4 * cells.size
        for n, layer in np.ndindex(cells.shape[:2]):
            start = starts[layer, n]
            np.testing.assert_array_equal(buffer[start : start + cells.shape[2]].view(np.float32), cells[n, layer])
        seen.append(cells.reshape(-1))
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), x.reshape(-1))


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    site, _ = save(tmp_path / "a.safetensors", np.zeros((64, 4, 8, 64), np.float32))
    again, _ = site_tensors(tmp_path / "a.safetensors", "acts"), site.files[0].map
    os.truncate(tmp_path / "a.safetensors", 200_000)
    with pytest.raises(InputError, match="found its end at byte 200000"):
        counted(site)
    with pytest.raises(InputError, match="has changed since its header was read"):
        counted(again)


def test_a_failure_in_a_thread_ends_the_work(tmp_path):
    site, _ = save(tmp_path / "a.safetensors", np.zeros((500, 1, 1, 1), np.float32))
    done = []

    def work(slab, state):
        done.append(slab.first)
        if slab.first == 3:
            raise InputError("no")

    with pytest.raises(InputError):
        list(work_through(slabs_of(site, 1), work, ["a", "b"]))
    assert len(done) < 20


def test_a_fraction_is_taken_as_written(tmp_path):
    assert LocationRule(layer_share=0.07).needed(100) == 7
    assert LocationRule(layer_share=0.25).needed(6) == 2
    assert LocationRule(layer_share=0.0).needed(6) == LocationRule(layer_share=None).needed(6) == 1


@pytest.mark.parametrize("layout", ["stacked", "per_layer"])
@pytest.mark.parametrize("tile", [3, 64])
def test_slabs_tiles_shards_and_threads_change_nothing(tmp_path, monkeypatch, layout, tile):
    x = activations((8, 6, 7, 12))
    whole, _ = save(tmp_path / "whole.safetensors", x, layout=layout)
    shards = [
        save(tmp_path / f"{i}.safetensors", x[a:b], layout=layout)[0]
        for i, (a, b) in enumerate([(0, 3), (3, 4), (4, 8)])
    ]
    expected = brute(x, "float32", 1.5, False, 0.5)
    rule = LocationRule(1.5, False, 0.5)
    other, _ = save(tmp_path / "other.safetensors", x)  # a sample is the same in either layout
    sampled = counted(other, 1.5, False, 0.5, value_samples=50, magnitude_samples=50)
    monkeypatch.setattr(count_kernel, "_TILE_VALUES", 1)
    monkeypatch.setattr(count_kernel, "_TILE_CELLS", tile)
    for values in (1, 6 * 5, 6 * 7 * 12, 6 * 7 * 12 * 7 + 1):  # a cell, part of a sequence, one sequence, several
        monkeypatch.setattr(module, "_SLAB_VALUES", values)
        for sites, threads in ((shards, 3), ([whole], 1)):
            assert count_document(count_locations(sites, rule, threads=threads)) == expected
            found = count_locations(sites, rule, threads=threads, value_samples=50, magnitude_samples=50)
            assert count_document(found) == sampled


@pytest.mark.parametrize("scale", [1.0, 1e-40, 1e30])
@pytest.mark.parametrize("make", ["normal", "constant", "negative", "few", "one"])
def test_quartiles_are_exact_whatever_the_values(tmp_path, make, scale):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((9, 3, 5, 11)).astype(np.float32)
    if make == "constant":
        x[:] = -1.25
    elif make == "negative":
        x = -np.abs(x)
    elif make == "few":
        x = rng.choice(np.array([-1, -0.0, 0, 0.3], np.float32), x.shape)
    elif make == "one":
        x = x[:1, :1, :1, :1].copy()
    x *= np.float32(scale)
    site, _ = save(tmp_path / "a.safetensors", x)
    assert counted(site)["quantiles"] == brute(x, "float32", 6.0, False, 0.25)["quantiles"]


def test_samples_come_with_an_error_that_fits(tmp_path):
    x = np.random.default_rng(1).standard_normal((64, 4, 8, 64)).astype(np.float32) * 8
    site, _ = save(tmp_path / "a.safetensors", x)
    found, exact = counted(site, value_samples=4000, magnitude_samples=4000), counted(site)
    for table, names in (("quantiles", ("q1", "median", "q3", "iqr")), ("magnitudes", ("q1", "median", "q3"))):
        assert found[table]["samples"] == 4000 and "samples" not in exact[table]
        for name in names:
            error = found[table]["standard_errors"][name]
            assert 0 < abs(found[table][name] - exact[table][name]) < 4 * error < 1.5
    assert {**found, "quantiles": 0, "magnitudes": 0} == {**exact, "quantiles": 0, "magnitudes": 0}
    assert found == counted(site, value_samples=4000, magnitude_samples=4000)


def test_standard_errors_of_a_normal_sample():
    """Of a quantile: sqrt(p (1 - p) / n) / density."""
    found = quartiles_of_values(np.random.default_rng(2).standard_normal(400_000).astype(np.float32), sampled=True)
    assert found.errors == pytest.approx([0.002154, 0.001982, 0.002154], rel=0.15)
    assert found.iqr_error == pytest.approx(0.002154 * math.sqrt(2 - 2 / 3), rel=0.15)


def test_enough_samples_for_all_outliers_are_exact(tmp_path):
    site, x = save(tmp_path / "a.safetensors", activations((7, 8, 5, 24)))
    assert counted(site, magnitude_samples=10**6) == brute(x, "float32", 6.0, False, 0.25)


def test_block_indices_of_the_layers_are_kept(tmp_path):
    x = activations((3, 2, 4, 6))
    save_file({f"s.{block}": torch.from_numpy(x[:, i].copy()) for i, block in enumerate((3, 17))} | {
        "s.weight": torch.zeros(2)
    }, tmp_path / "a.safetensors")  # fmt: skip
    found = counted(site_tensors(tmp_path / "a.safetensors", "s"))
    expected = brute(x, "float32", 6.0, False, 0.25)
    for table in ("layers", "first_layers"):
        assert [row["layer"] for row in found[table]] == [3, 17]
        assert [row["count"] for row in found[table]] == [row["count"] for row in expected[table]]


def test_comparison(tmp_path):
    def one(name, counts):
        x = np.zeros((10, 1, 1, len(counts)), np.float32)
        for dim, count in enumerate(counts):
            x[:count, 0, 0, dim] = 7
        return count_locations([save(tmp_path / name, x)[0]], LocationRule())

    first, second, none = one("a", [3, 9, 0, 4, 5]), one("b", [4, 2, 8, 3, 0]), one("c", [0] * 5)
    assert comparison_document(("a", "b"), compare_dims(first, second)) == {
        "keys": ["a", "b"], "dims": [4, 4], "common": 3, "jaccard": 3 / 5,
        "top_common": [{"dim": 0, "min_count": 3}, {"dim": 3, "min_count": 3}, {"dim": 1, "min_count": 2}],
    }  # fmt: skip
    assert compare_dims(first, none).jaccard == 0
    assert compare_dims(none, none).jaccard is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_counted_over_the_whole_file(tmp_path, monkeypatch, bad):
    x = activations((9, 4, 5, 6))
    x[0, 2, 1, 1] = x[8, 2, 3, 0] = x[8, 3, 3, 0] = bad
    site, _ = save(tmp_path / "a.safetensors", x)
    monkeypatch.setattr(module, "_SLAB_VALUES", 1)
    with pytest.raises(InputError, match="layer 2 has 2 values that are NaN or infinite"):
        counted(site)


def test_two_tensors_of_one_layer_are_refused(tmp_path):
    save_file({name: torch.zeros(2, 3, 4) for name in ("s.0", "s.1", "s.01")}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"s\.0?1 is not the only tensor of its layer"):
        site_tensors(tmp_path / "a.safetensors", "s")


def test_shards_that_differ_are_refused(tmp_path):
    sites = [save(tmp_path / str(h), activations((2, 3, 4, h)))[0] for h in (6, 7)]
    with pytest.raises(InputError, match=r"\[2, 3, 4, 7\], expected F32 \[2, 3, 4, 6\]"):
        count_locations(sites, LocationRule())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["stacked", "per layer"])
def test_only_some_positions_count(tmp_path, monkeypatch, dtype, layout):
    """Padding and the first position of some sequences, in two files, in small slabs."""
    monkeypatch.setattr(module, "_SLAB_VALUES", 70)
    rng = np.random.default_rng(1)
    members = rng.random((9, 6)) < 0.6
    members[2:5] = [False, True, True, True, True, False]
    members[7] = False
    saved = [save(tmp_path / f"{i}", activations((n, 4, 6, 5), i), dtype, layout) for i, n in enumerate((5, 4))]
    x = np.concatenate([part for _, part in saved])
    found = count_locations([site for site, _ in saved], LocationRule(), members=members, threads=2)
    inside = np.broadcast_to(members[:, None, :, None], x.shape)
    hit = (np.abs(x) > 6) & inside
    kept = hit & (hit.mean(axis=1, keepdims=True) >= 0.25)
    document = count_document(found)
    assert document["elements_over_threshold"] == hit.sum() and document["occurrences"] == kept.sum()
    assert document["occurrence_rate"] == kept.sum() / inside.sum()
    assert document["location_rate"] == kept.any(axis=1).sum() / (members.sum() * 5)
    assert [row["count"] for row in document["tokens"]] == kept.sum(axis=(0, 1, 3)).tolist()
    quartiles = np.quantile(x[inside].astype(np.float64), [0.25, 0.5, 0.75])
    assert [document["quantiles"][name] for name in ("q1", "median", "q3")] == pytest.approx(quartiles, rel=1e-12)
    magnitudes = np.quantile(np.abs(x[kept]).astype(np.float64), [0, 0.25, 0.5, 0.75, 1])
    assert [document["magnitudes"][name] for name in ("min", "q1", "median", "q3", "max")] == pytest.approx(magnitudes)
