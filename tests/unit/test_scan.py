"""The streaming pass against brute force in numpy, on planted and ordinary values, in every format and layout."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import TensorFile
from outlier_features.scan import scan_kernel
from outlier_features.scan.scan import pilot_means, runs_of, scan
from outlier_features.scan.site_tensors import SiteTensors
from outlier_features.scan.statistics import merge

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def activations(rng, n, layers, t, h, offset=50.0):
    """Values with a dim far from zero (so that power sums cancel), a heavy dim and a few huge values."""
    x = rng.standard_normal((n, layers, t, h)).astype(np.float32)
    x[..., 1] += offset
    x[..., h // 2] *= 5
    x[:, layers // 2, 0, h - 1] = -2000
    return x


def parts_of(rng, n, t):
    parts = np.ones((n, t), np.uint8)
    parts[:, 0] = 0
    parts[rng.random((n, t)) < 0.1] = 0
    for row in range(1, n, 2):
        parts[row, t - rng.integers(0, t // 2) :] = 2
    return parts


def save(path, x, dtype, layout):
    tensor = torch.from_numpy(x).to(DTYPES[dtype])
    if layout == "stacked":
        save_file({"acts": tensor}, path)
        return SiteTensors.stacked(TensorFile(path), "acts"), tensor.float().numpy()
    save_file({f"acts.{layer}": tensor[:, layer].contiguous() for layer in range(x.shape[1])}, path)
    tensors = SiteTensors.per_layer(TensorFile(path), "acts")
    assert tensors is not None
    return tensors, tensor.float().numpy()


def run(tensors, parts, floor=4.0, **options):
    hits = []
    options = {"threads": 2, **options}
    statistics = scan(tensors, parts, pilot_means(tensors, parts[0]), floor, on_hits=hits.append, **options)
    columns = {name: np.concatenate([getattr(hit, name) for hit in hits]) for name in hits[0].__dataclass_fields__}
    return statistics, columns


@pytest.mark.parametrize("layout", ["stacked", "per_layer"])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("shape", [(3, 2, 16, 24), (5, 3, 37, 19), (2, 1, 5, 64)])
def test_every_statistic_equals_brute_force(tmp_path, layout, dtype, shape):
    rng = np.random.default_rng(0)
    n, layers, t, _ = shape
    tensors, x = save(tmp_path / "x.safetensors", activations(rng, *shape), dtype, layout)
    parts = parts_of(rng, n, t)
    statistics, hits = run(tensors, parts)

    expected = np.argwhere((np.abs(x.transpose(0, 1, 2, 3)) >= 4) & (parts != 2)[:, None, :, None])
    found = np.stack([hits["sequence"], hits["layer"], hits["token"], hits["dim"]], axis=1)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(hits["value"], x[tuple(expected.T)])
    np.testing.assert_array_equal(hits["part"], parts[expected[:, 0], expected[:, 2]])

    for population, members in (("all", [0, 1]), ("without_first", [1])):
        chosen = np.isin(parts, members)
        assert statistics.count(population) == chosen.sum()
        for layer in range(layers):
            values = x[:, layer][chosen].astype(np.float64)
            magnitude = np.abs(values)
            np.testing.assert_array_equal(statistics.over(population, "low")[layer], values.min(0))
            np.testing.assert_array_equal(statistics.over(population, "high")[layer], values.max(0))
            np.testing.assert_array_equal(statistics.over(population, "positive")[layer], (values >= 6).sum(0))
            np.testing.assert_array_equal(statistics.over(population, "negative")[layer], (values <= -6).sum(0))
            assert statistics.over(population, "positions_hit")[layer] == (magnitude >= 6).any(1).sum()
            mean, square = (moment[layer] for moment in statistics.channel_mean_square(population))
            np.testing.assert_allclose(mean, values.mean(0), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(square, (values**2).mean(0), rtol=1e-5)
            flat = values - values.mean()
            kurtosis = (flat**4).mean() / (flat**2).mean() ** 2 - 3
            np.testing.assert_allclose(statistics.flat_kurtosis(population)[layer], kurtosis, rtol=1e-5)
            rows = values - values.mean(1, keepdims=True)
            kurtosis = ((rows**4).mean(1) / (rows**2).mean(1) ** 2).mean()
            np.testing.assert_allclose(statistics.token_kurtosis(population)[layer], kurtosis, rtol=1e-9)
            rms = (values**2).mean(0)
            kurtosis = (rms**2).mean() / rms.mean() ** 2
            np.testing.assert_allclose(statistics.channel_kurtosis(population)[layer], kurtosis, rtol=1e-5)
            for sequence in range(n):
                one = np.abs(x[sequence, layer][chosen[sequence]].astype(np.float64))
                if one.size == 0:
                    continue
                column = ["all", "without_first"].index(population)
                assert statistics.median[layer, sequence, column] == np.median(one)
                top = statistics.sequence_top(population)[layer, sequence]
                np.testing.assert_array_equal(top, np.sort(one, axis=None)[::-1][:3])
                mine = (
                    statistics.absolute[layer, sequence, members].sum(),
                    statistics.square[layer, sequence, members].sum(),
                )
                np.testing.assert_allclose(mine, (one.sum(), (one**2).sum()), rtol=1e-9)
        counts, moments = statistics.position_moments(population)
        np.testing.assert_array_equal(counts, chosen.sum(axis=0))
        for token in np.flatnonzero(counts):
            values = x[chosen[:, token], :, token].astype(np.float64)
            np.testing.assert_allclose(moments[:, token, 0], values.mean(axis=(0, 2)), rtol=1e-12)
            np.testing.assert_allclose(moments[:, token, 1], (values**2).mean(axis=(0, 2)), rtol=1e-12)


def test_histogram_counts_every_value_in_its_bin(tmp_path):
    rng = np.random.default_rng(1)
    tensors, x = save(tmp_path / "x.safetensors", activations(rng, 2, 2, 20, 24), "F32", "per_layer")
    parts = parts_of(rng, 2, 20)
    statistics, _ = run(tensors, parts)
    for layer in range(2):
        for part in (0, 1):
            bits = x[:, layer][parts == part].reshape(-1).view(np.uint32) >> 16
            bins, counts = np.unique(bits, return_counts=True)
            start, stop = statistics.offsets[2 * layer + part : 2 * layer + part + 2]
            np.testing.assert_array_equal(statistics.bins[start:stop], bins)
            np.testing.assert_array_equal(statistics.counts[start:stop], counts)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 6), threads=st.integers(1, 3))
def test_chunks_and_threads_change_nothing(tmp_path_factory, seed, cut, threads):
    rng = np.random.default_rng(seed)
    x, parts = activations(rng, 7, 3, 18, 20), parts_of(rng, 7, 18)
    folder = tmp_path_factory.mktemp("chunks")
    whole, _ = save(folder / "whole.safetensors", x, "F32", "per_layer")
    pilot = pilot_means(whole, parts[0])
    reference = scan(whole, parts, pilot, 4.0, on_hits=lambda hits: None)
    pieces = []
    for start in range(0, 7, cut):
        tensors, _ = save(folder / f"{start}.safetensors", x[start : start + cut], "F32", "stacked")
        options = {"start": start, "threads": threads}
        pieces.append(scan(tensors, parts[start : start + cut], pilot, 4.0, on_hits=lambda hits: None, **options))
    merged = merge(pieces)
    for name in reference.__dataclass_fields__:
        mine, theirs = getattr(merged, name), getattr(reference, name)
        if name in ("sums", "kurtosis"):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9)
        else:
            np.testing.assert_array_equal(mine, theirs)


def test_float16_is_widened_exactly():
    bits = np.arange(1 << 16, dtype=np.uint16)
    out = np.empty(bits.size, np.float32)
    scan_kernel.widen_float16(bits, out)
    np.testing.assert_array_equal(out, bits.view(np.float16).astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_values_that_are_not_finite_are_refused(tmp_path, value, dtype):
    x = activations(np.random.default_rng(2), 2, 2, 20, 24)
    x[1, 1, 17, 3] = value
    tensors, _ = save(tmp_path / "x.safetensors", x, dtype, "stacked")
    with pytest.raises(InputError, match=r"site acts, layer 1 has 1 values that are NaN or infinite"):
        run(tensors, np.ones((2, 20), np.uint8))


def test_padding_may_hold_anything(tmp_path):
    x = activations(np.random.default_rng(3), 2, 2, 20, 24)
    parts = np.ones((2, 20), np.uint8)
    parts[1, 10:] = 2
    x[1, :, 10:] = np.nan
    tensors, _ = save(tmp_path / "x.safetensors", x, "F32", "stacked")
    statistics, hits = run(tensors, parts)
    assert statistics.count("all") == 30 and np.isfinite(hits["value"]).all()


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("threads", [1, 3])
def test_too_many_hits_of_a_sequence_are_not_listed(tmp_path, dtype, threads):
    """But all of them are counted, and those that may be massive are listed all the same."""
    rng = np.random.default_rng(5)
    x = activations(rng, 6, 5, 40, 24)
    x[1::2] *= 3
    tensors, x = save(tmp_path / "x.safetensors", x, dtype, "per_layer")
    parts = parts_of(rng, 6, 40)
    members = parts != 2
    hit = (np.abs(x) >= 4) & members[:, None, :, None]
    dense = hit.sum(axis=(1, 2, 3)) > 0.12 * members.sum(axis=1) * 5 * 24
    assert 0 < dense.sum() < 6
    plain, every = run(tensors, parts)
    for massive in (None, {"threshold": 100.0, "ratio": 30.0}):
        expected = hit & ~dense[:, None, None, None]
        if massive:
            for n, layer in np.argwhere(dense[:, None] & np.ones(5, bool)):
                one = np.abs(x[n, layer].astype(np.float64))
                rest = one[parts[n] == 1]
                median = min(np.median(one[members[n]]), np.median(rest) if rest.size else np.inf)
                expected[n, layer] = ((one > 100) & (one >= 30 * median)) & members[n][:, None]
            assert expected[dense].any()
        statistics, hits = run(tensors, parts, max_density=0.12, massive=massive, threads=threads)
        found = np.stack([hits["sequence"], hits["layer"], hits["token"], hits["dim"]], axis=1)
        np.testing.assert_array_equal(found, np.argwhere(expected))
        np.testing.assert_array_equal(hits["value"], x[expected])
        np.testing.assert_array_equal(statistics.hits, hit.sum(axis=(1, 2, 3)))
        np.testing.assert_array_equal(statistics.listed, ~dense)
        for name in set(statistics.__dataclass_fields__) - {"listed"}:
            np.testing.assert_array_equal(getattr(statistics, name), getattr(plain, name))
    assert len(every["value"]) == hit.sum() and plain.listed.all()


def test_lists_do_not_grow_with_the_hits(tmp_path, monkeypatch):
    """What a layer lists of a sequence that has too many hits is bounded while it is scanned."""
    x = np.full((3, 4, 160, 24), 7, np.float32)
    tensors, _ = save(tmp_path / "x.safetensors", x, "F32", "stacked")
    sizes, scan_layer = [], scan_kernel.scan_layer

    def watched(*arguments):
        found, *listed = scan_layer(*arguments)
        sizes.append(len(listed[-1]))
        return found, *listed

    monkeypatch.setattr(scan_kernel, "scan_layer", watched)
    statistics, hits = run(tensors, np.ones((3, 160), np.uint8), max_density=0.02, threads=1)
    assert max(sizes) <= 3 * 0.02 * x[0].size + 3 * scan_kernel.TILE * 24 and not len(hits["value"])
    assert statistics.hits.tolist() == [x[0].size] * 3 and not statistics.listed.any()


def test_runs_cover_every_position_once():
    rng = np.random.default_rng(4)
    parts = rng.integers(0, 3, (20, 13)).astype(np.uint8)
    parts[3] = 2
    runs, starts = runs_of(parts)
    rebuilt = np.full_like(parts, 2)
    for sequence in range(20):
        for first, last, part in runs[starts[sequence] : starts[sequence + 1]]:
            rebuilt[sequence, first:last] = part
    np.testing.assert_array_equal(rebuilt, parts)


@pytest.mark.parametrize("dims", [1, 7, 16, 33, 100, 576])
@pytest.mark.parametrize("rows", [1, 8, 13, 16])
def test_every_sum_has_the_order_that_the_source_gives_it(rows, dims):
    """Compiled or interpreted, bit for bit: so no compiler, CPU or cache of compiled code changes a number."""
    random = np.random.default_rng(rows * dims)
    x = (random.standard_normal(rows * dims) * 10.0 ** random.integers(-3, 4, rows * dims)).astype(np.float32)
    pilot = random.standard_normal(dims).astype(np.float32)
    kernels = (scan_kernel._sum_tile, scan_kernel._sum_row, scan_kernel._sum_powers, scan_kernel._describe_rows)
    found = []
    for sum_tile, sum_row, sum_powers, describe_rows in (kernels, [kernel.py_func for kernel in kernels]):
        scratch = scan_kernel.new_scratch(rows, dims)
        sums, low, high = np.zeros((4, dims)), np.zeros(dims, np.float32), np.zeros(dims, np.float32)
        kurtosis, at, row_sums = np.zeros(2), np.zeros((rows, 2)), np.zeros((rows, 2, 2 * scan_kernel._LANES))
        infinite = sum_tile(x, rows, pilot, sums, low, high, scratch)
        for row, (sums_of_row, powers) in zip(x.reshape(rows, dims), row_sums, strict=True):
            sum_row(row, sums_of_row)
            sum_powers(row, np.float64(sums_of_row[: scan_kernel._LANES].sum() / dims), powers)
        totals = np.array(describe_rows(x, rows, dims, kurtosis, at, scratch.totals, scratch.lanes))
        arrays = (sums, low, high, kurtosis, at, row_sums, totals)
        found.append([bool(infinite), *(array.tobytes() for array in arrays)])
    assert found[0] == found[1]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), size=st.integers(1, 300), guess=st.integers(0, 0x7F800000))
def test_medians_are_exact_from_any_guess(data, size, guess):
    """Of ordinary values, of ones that differ by powers of ten, of few different ones, and of subnormals."""
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    values = random.standard_normal(size)
    match data.draw(st.sampled_from(["ordinary", "wide", "ties", "halves", "subnormal"])):
        case "wide":
            values *= 10.0 ** random.integers(-44, 38, size)
        case "ties":
            values = np.round(values)
        case "halves":
            values = np.where(np.arange(size) % 2, 1e-30, 1e30)
        case "subnormal":
            values *= 1e-40
    values = values.astype(np.float32)
    median, _ = scan_kernel._median(values, guess, scan_kernel.new_scratch(1, 1).candidates)
    assert median == np.median(np.abs(values.astype(np.float64)))
