"""Hits against a scale equal brute force in numpy, whatever the format, the layout, the chunks and the populations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlier_features.scan import scaled_kernel, scan_kernel
from outlier_features.scan.scales import Scale, usable_gains
from outlier_features.scan.scan import pilot_means, scan
from test_scan import DTYPES, activations, parts_of, save

COLUMNS = ("sequence", "layer", "token", "dim")


def listed(tensors, parts, scales, **options):
    """By scale the columns of the hits, and the sequences that have too many."""
    found = {name: [] for name in scales}
    scan(
        tensors, parts, pilot_means(tensors, parts[0]), 4.0, on_hits=lambda hits: None,
        scaled=scales, on_scaled_hits=lambda hits: found[hits.scale].append(hits), **options,
    )  # fmt: skip
    names = (*COLUMNS, "value", "part", "scaled", "unlisted")
    return {
        scale: {name: np.concatenate([getattr(one, name) for one in hits]) for name in names}
        for scale, hits in found.items()
    }


def rms(x):
    return np.sqrt((x.astype(np.float64) ** 2).mean())


def divisors(x, parts, gains):
    """What each value (N, L, T, H) is divided by, by scale: infinite where nothing is a hit."""
    n, layers = x.shape[:2]
    token, layer = np.full(x.shape, np.inf), np.full(x.shape, np.inf)
    for b in range(n):
        for index in range(layers):
            every, rest = x[b, index][parts[b] != 2], x[b, index][parts[b] == 1]
            for position in np.flatnonzero(parts[b] != 2):
                token[b, index, position] = rms(x[b, index, position]) or np.inf
                sizes = [rms(every), rms(rest)] if parts[b, position] == 1 else [rms(every)]
                layer[b, index, position] = min(sizes) or np.inf
    gain = np.where(parts[:, None, :, None] != 2, np.where(np.isnan(gains), np.inf, gains)[:, None], np.inf)
    return {"token_rms": token, "layer_rms": layer, "gain": gain}


def require_brute_force(found, x, parts, ks, gains):
    for scale, over in divisors(x, parts, gains).items():
        if scale not in ks:
            continue
        hit = np.abs(x.astype(np.float64)) / np.abs(over) >= ks[scale]
        many = np.full(len(x), False)
        if scale == "gain":
            # A layer with hits at more than a ninth of its values is too much of its sequence.
            most = np.floor(np.maximum(1 / 9, 1 / ks[scale] ** 2) * (parts != 2).sum(axis=1) * x.shape[3])
            many = (hit.sum(axis=(2, 3)) > most[:, None]).any(axis=1)
        expected = np.argwhere(hit & ~many[:, None, None, None])
        hits = found[scale]
        np.testing.assert_array_equal(np.stack([hits[name] for name in COLUMNS], axis=1), expected, scale)
        np.testing.assert_array_equal(hits["value"], x[tuple(expected.T)])
        np.testing.assert_allclose(hits["scaled"], (x / over)[tuple(expected.T)], rtol=1e-12)
        np.testing.assert_array_equal(hits["part"], parts[expected[:, 0], expected[:, 2]])
        assert hits["unlisted"].tolist() == np.flatnonzero(many).tolist()


def scales_of(ks, gains):
    return {name: Scale(k, gains if name == "gain" else None) for name, k in ks.items()}


@pytest.mark.parametrize("layout", ["stacked", "per_layer"])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("shape", [(3, 2, 16, 24), (5, 3, 37, 19), (2, 1, 5, 64), (1, 2, 1, 1), (2, 2, 33, 70)])
def test_equal_brute_force(tmp_path, layout, dtype, shape):
    rng = np.random.default_rng(0)
    n, layers, t, h = shape
    x = rng.standard_normal(shape).astype(np.float32)
    x[..., h // 2] *= 5
    x[:, layers // 2, 0, h - 1] = -2000
    x[0, 0, t // 2] = 0
    tensors, x = save(tmp_path / "x.safetensors", x, dtype, layout)
    parts = parts_of(rng, n, t) if t > 1 else np.zeros((n, t), np.uint8)
    gains = rng.uniform(0.2, 3, (layers, h)) * rng.choice([-1, 1], (layers, h))
    gains[layers - 1, h // 3] = np.nan
    ks = {"token_rms": 3, "layer_rms": 3.5, "gain": 5}
    found = listed(tensors, parts, scales_of(ks, gains), threads=2)
    require_brute_force(found, x, parts, ks, gains)
    assert h == 1 or all(len(hits["value"]) for hits in found.values())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 7), layers=st.integers(1, 3), t=st.integers(2, 40),
    h=st.integers(3, 80), dtype=st.sampled_from(list(DTYPES)), threads=st.integers(1, 3),
    size=st.floats(-3, 3), asked=st.sets(st.sampled_from(["token_rms", "layer_rms", "gain"]), min_size=1),
    excluded=st.booleans(), block=st.sampled_from([100, 5000, 1 << 26]),
)  # fmt: skip
def test_equal_brute_force_in_any_shape(
    tmp_path_factory, seed, n, layers, t, h, dtype, threads, size, asked, excluded, block
):
    rng = np.random.default_rng(seed)
    x = activations(rng, n, layers, t, h, offset=5) * np.float32(10**size)
    tensors, x = save(tmp_path_factory.mktemp("x") / "x.safetensors", np.clip(x, -6e4, 6e4), dtype, "per_layer")
    parts = parts_of(rng, n, t)
    if not excluded:
        parts[parts == 0] = 1
    gains = rng.uniform(0.2, 3, (layers, h)) * 10**size * 4
    ks = {name: float(rng.uniform(3, 6)) for name in sorted(asked)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("outlier_features.scan.scan._BLOCK_VALUES", block)
        found = listed(tensors, parts, scales_of(ks, gains), threads=threads)
    require_brute_force(found, x, parts, ks, gains)


def test_numbers_that_are_exact_meet_their_threshold(tmp_path):
    """One value among 16 is exactly 4 times the RMS of its position, and four among 256 are 8 times the layer's."""
    x = np.zeros((1, 1, 16, 16), np.float32)
    x[0, 0, 0, 3], x[0, 0, 5, 3], x[0, 0, 9, 15], x[0, 0, 15, 0] = 7, -7, 7, -7
    tensors, x = save(tmp_path / "x.safetensors", x, "F32", "stacked")
    parts = np.ones((1, 16), np.uint8)
    exact = listed(tensors, parts, scales_of({"token_rms": 4, "layer_rms": 8}, None))
    assert exact["token_rms"]["scaled"].tolist() == [4, -4, 4, -4]
    assert exact["layer_rms"]["scaled"].tolist() == [8, -8, 8, -8]
    above = listed(tensors, parts, scales_of({"token_rms": np.nextafter(4, 5), "layer_rms": np.nextafter(8, 9)}, None))
    assert not len(above["token_rms"]["value"]) and not len(above["layer_rms"]["value"])


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e30])
def test_any_size_of_values_is_measured(tmp_path, size):
    rng = np.random.default_rng(3)
    x = (activations(rng, 2, 2, 20, 48, offset=0) * size).astype(np.float32)
    tensors, x = save(tmp_path / "x.safetensors", x, "F32", "stacked")
    parts = np.ones((2, 20), np.uint8)
    gains = rng.uniform(1, 3, (2, 48)) * size
    ks = {"token_rms": 3.0, "gain": 4.0}
    require_brute_force(listed(tensors, parts, scales_of(ks, gains)), x, parts, ks, gains)


def test_scaled_hits_change_nothing_else(tmp_path):
    rng = np.random.default_rng(1)
    tensors, _ = save(tmp_path / "x.safetensors", activations(rng, 4, 3, 20, 24), "BF16", "per_layer")
    parts, pilot = parts_of(rng, 4, 20), pilot_means(tensors, parts_of(rng, 4, 20)[0])
    runs = []
    for scales in ({}, scales_of({"token_rms": 3, "layer_rms": 3}, None)):
        hits = []
        statistics = scan(tensors, parts, pilot, 4.0, on_hits=hits.append, scaled=scales)
        runs.append([*vars(statistics).values(), *(vars(hits[0]).values())])
    for one, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_sequence_with_too_many_hits_against_gains_lists_none(tmp_path, threads):
    """A bias may put every value far from 0; what is listed meanwhile does not grow."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((5, 3, 100, 30)).astype(np.float32)
    x[1, 2] += 50  # one layer is enough
    x[3] += 50
    tensors, x = save(tmp_path / "x.safetensors", x, "F32", "per_layer")
    parts = parts_of(rng, 5, 100)
    found = listed(tensors, parts, scales_of({"gain": 3.0}, np.ones((3, 30))), threads=threads)["gain"]
    assert found["unlisted"].tolist() == [1, 3]
    expected = np.argwhere((np.abs(x) >= 3) & (parts != 2)[:, None, :, None])
    expected = expected[~np.isin(expected[:, 0], [1, 3])]
    np.testing.assert_array_equal(np.stack([found[name] for name in COLUMNS], axis=1), expected)


def test_dims_that_a_gain_hides_are_left_out():
    gains = np.array([[1, 2, 0, -0.0009, -3], [1, 1, 1, 1, 1], [np.nan] * 5, [0, 0, 0, 1, 2]], np.float32)
    usable, left_out = usable_gains(gains)
    assert left_out == {0: [2, 3], 3: [0, 1, 2]}
    expected = gains.astype(float)
    expected[0, [2, 3]] = expected[3, :3] = np.nan
    np.testing.assert_array_equal(usable, expected)


def test_bounds_hold_for_rms_norms_without_bias(tmp_path):
    """At most 1 / k**2 of the values are hits, and where one dim holds all, that many are."""
    x = torch.nn.functional.rms_norm(torch.randn(4, 2, 50, 36) ** 5, (36,), eps=1e-12).numpy()
    x[0, 0] = 0
    x[0, 0, :, 7] = 6
    tensors, x = save(tmp_path / "x.safetensors", x, "F32", "stacked")
    parts = np.ones((4, 50), np.uint8)
    found = listed(tensors, parts, scales_of(dict.fromkeys(("token_rms", "layer_rms", "gain"), 3.0), np.ones((2, 36))))
    for hits in found.values():
        assert 50 <= len(hits["value"]) <= x.size / 9


@pytest.mark.parametrize("dims", [1, 63, 64, 200, 384])
def test_the_rms_has_the_order_that_the_source_gives_it(dims):
    """Compiled or interpreted, bit for bit."""
    x = np.random.default_rng(dims).standard_normal(5 * dims).astype(np.float32)
    found = []
    for sum_squares, rms_of_rows in (
        (scaled_kernel._sum_squares, scaled_kernel._rms_of_rows),
        (scaled_kernel._sum_squares.py_func, scaled_kernel._rms_of_rows.py_func),
    ):
        lanes, rms = np.zeros((scan_kernel.TILE, scaled_kernel._LANES)), np.zeros(scan_kernel.TILE)
        row_lanes = np.zeros((5, scaled_kernel._LANES))
        for row, own in zip(x.reshape(5, dims), row_lanes, strict=True):
            sum_squares(row, own)
        rms_of_rows(x, 5, dims, lanes, rms)
        found.append((row_lanes.tobytes(), rms[:5].tobytes()))
        np.testing.assert_allclose(
            rms[:5], np.sqrt((x.reshape(5, dims).astype(np.float64) ** 2).mean(axis=1)), rtol=1e-14
        )
    assert found[0] == found[1]
