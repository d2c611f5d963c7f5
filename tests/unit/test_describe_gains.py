"""Gains described, at some dims and from files: against plain Python, and planted values."""

import statistics

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import TensorFile
from outlier_features.norms.describe_gains import all_exactly_one, describe_gains, gains_at, spread_of_others
from outlier_features.norms.gains_in_file import gains_in_file
from outlier_features.norms.norm import Gain


def gain(*values, offset=0):
    return Gain(np.array(values, np.float32), offset)


@pytest.mark.parametrize("offset", [0, 1])
def test_described_as_python_does(offset):
    stored = np.random.default_rng(0).standard_normal(31).astype(np.float32)
    stored[[3, 8]] = 1 - offset
    row = describe_gains({"norm": Gain(stored, offset)})["norm"]
    values = [offset + float(value) for value in stored]
    assert (row["min"], row["max"], row["exactly_one"], row["all_one"]) == (min(values), max(values), 2, False)
    assert row["mean"] == pytest.approx(statistics.fmean(values), rel=1e-12)
    assert row["median"] == statistics.median(values)
    assert (row["shape"], row["size"]) == ([31], 31)


def test_at_dims_as_python_does():
    stored = np.random.default_rng(1).standard_normal(40).astype(np.float32)
    dims = [30, 2]
    values = [abs(float(value)) for value in stored]
    others = [value for dim, value in enumerate(values) if dim not in dims]
    for row, dim in zip(gains_at(Gain(stored), dims), dims, strict=True):
        assert row == {
            "dim": dim, "gain": float(stored[dim]), "rank": sorted(values, reverse=True).index(values[dim]) + 1,
            "ratio": pytest.approx(values[dim] / statistics.median(others), rel=1e-12),
        }  # fmt: skip
    spread = spread_of_others(Gain(stored), dims)
    assert (spread["others_min"], spread["others_max"]) == (min(others), max(others))
    cuts = statistics.quantiles(others, n=20, method="inclusive")
    assert (spread["others_p05"], spread["others_p95"]) == (pytest.approx(cuts[0]), pytest.approx(cuts[-1]))


def test_a_damped_dim_is_last_and_equal_ones_share_a_rank():
    rows = gains_at(gain(1, -2, 2, 0.01, 1), [3, 1, 2])
    assert [(row["dim"], row["rank"], row["gain"]) for row in rows] == [
        (3, 5, pytest.approx(0.01)),
        (1, 1, -2),
        (2, 1, 2),
    ]
    assert rows[0]["ratio"] == pytest.approx(0.01) and rows[1]["ratio"] == 2


def test_one_plus_w_is_ranked_by_its_sum():
    (row,) = gains_at(gain(-1, 0.5, 0.25, offset=1), [0])
    assert (row["gain"], row["rank"], row["ratio"]) == (0, 3, 0)


def test_no_ratio_without_others():
    assert [row["ratio"] for row in gains_at(gain(3, 4), [0, 1])] == [None, None]
    assert gains_at(gain(3, 0, 0), [0])[0]["ratio"] is None
    assert set(spread_of_others(gain(3, 4), [0, 1]).values()) == {None}


@pytest.mark.parametrize(
    ("rows", "answer"),
    [
        ([("w", True), ("1 + w", True)], True),
        ([("w", True), ("none", None)], True),
        ([("w", True), (None, None)], None),
        ([("w", False), (None, None)], False),
        ([("none", None)], None),
        ([], None),
    ],
)
def test_the_answer(rows, answer):
    assert all_exactly_one([{"parameterization": what, "all_one": one} for what, one in rows]) is answer


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0]])
def test_gains_that_are_not_finite(bad):
    with pytest.raises(InputError, match="norm: 1 of its 2 gains are NaN or infinite"):
        describe_gains({"norm": gain(*bad)})


@pytest.mark.parametrize(
    ("dtype", "step"),
    [(torch.float64, 2**-52), (torch.float32, 2**-23), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)],
)
def test_every_dtype_exactly(tmp_path, dtype, step):
    ones = torch.ones(2, 8, dtype=dtype)
    ones[1, 5] += step  # the next number after 1
    file = tmp_path / "dump.safetensors"
    save_file({"rmsnorm_gammas/a": ones[0].clone(), "rmsnorm_gammas/b": ones, "other": torch.zeros(3)}, file)
    found = describe_gains(gains_in_file(TensorFile(file)))
    assert list(found) == ["a", "b.0", "b.1"]
    assert [row["exactly_one"] for row in found.values()] == [8, 8, 7]
    assert found["b.1"]["max"] == 1 + step and found["b.1"]["shape"] == [8]
    assert {row["dtype"] for row in found.values()} == {str(dtype).removeprefix("torch.")}
    assert list(gains_in_file(TensorFile(file), ["other"])) == ["other"]


@pytest.mark.parametrize(
    ("tensors", "keys", "message"),
    [
        ({"weight": torch.ones(3)}, [], "found weight, expected keys rmsnorm_gammas/<module>"),
        ({}, [], "found no tensor, expected keys"),
        ({"a": torch.ones(3)}, ["b"], "has no tensor 'b'"),
        ({"a": torch.ones(3, dtype=torch.int32)}, ["a"], "a is I32, expected one of F64, F32, BF16, F16"),
        ({"a": torch.ones(2, 2, 2)}, ["a"], r"a has shape \[2, 2, 2\], expected \(H,\) or \(L, H\)"),
        ({"a": torch.ones(0)}, ["a"], r"a of shape \[0\] is empty"),
        ({"a": torch.ones(0, 4)}, ["a"], r"a of shape \[0, 4\] is empty"),
    ],
)
def test_files_without_gains(tmp_path, tensors, keys, message):
    save_file(tensors, tmp_path / "dump.safetensors")
    with pytest.raises(InputError, match=message):
        gains_in_file(TensorFile(tmp_path / "dump.safetensors"), keys)
