"""Bins of |x| hold exactly the values between their edges, in every format and for any chunking."""

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import save_file

from outlier_features.detect.magnitude_bins import distribution_rows
from outlier_features.files.tensorfile import TensorFile
from outlier_features.populations import POPULATIONS
from outlier_features.scan.scan import pilot_means, scan
from outlier_features.scan.site_tensors import SiteTensors
from outlier_features.scan.statistics import merge
from test_scan import DTYPES, activations, parts_of

SHAPE = (4, 3, 16, 24)
TINY = [0.0, -0.0, 2.0**-149, 2.0**-130, 2.0**-127, 2.0**-126, 1.5 * 2.0**-126, 2.0**-24, 3 * 2.0**-24, 6.0, -6.0]


def scanned(path, x, dtype, parts):
    """Statistics of the values in a format, and the values themselves as that format has them, float64."""
    tensor = torch.from_numpy(x).to(DTYPES[dtype])
    save_file({"acts": tensor}, path)
    tensors = SiteTensors.stacked(TensorFile(path), "acts")
    pilot = pilot_means(tensors, parts[0])
    return tensors, pilot, tensor.double().numpy()


def rows_of(statistics, population, dtype):
    return distribution_rows("attn_norm", statistics, population, dtype)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_bins_equal_brute_force(tmp_path, dtype):
    rng = np.random.default_rng(1)
    x = activations(rng, *SHAPE)
    x[1, 1, 3, : len(TINY)] = TINY
    x[:, 2] = np.maximum(x[:, 2], 0)  # as after a ReLU
    parts = parts_of(rng, SHAPE[0], SHAPE[2])
    parts[1, 3] = 1
    tensors, pilot, values = scanned(tmp_path / "x.safetensors", x, dtype, parts)
    whole = scan(tensors, parts, pilot, 4.0, on_hits=lambda hits: None)
    in_two = merge(
        scan(tensors.rows(*rows), parts[slice(*rows)], pilot, 4.0, on_hits=lambda hits: None)
        for rows in ((0, 3), (3, 4))
    )
    for population, members in POPULATIONS.items():
        table = rows_of(whole, population, dtype)
        assert_frame_equal(table, rows_of(in_two, population, dtype))
        for layer in range(SHAPE[1]):
            magnitude = np.abs(values[:, layer][np.isin(parts, members)])
            bins = table.filter(layer=layer)
            assert bins["values"].sum() == magnitude.size
            for low, high, count in bins.select("low", "high", "values").rows():
                inside = (magnitude >= low) & (magnitude < high) if high else magnitude == 0
                assert count == inside.sum() > 0
                assert low == 0 or high / low in (1.5, 4 / 3)
        assert 6.0 in table["low"]
        assert table.filter(layer=2)["low"].min() == 0


def test_a_population_without_positions_has_no_rows(tmp_path):
    parts = np.zeros((2, 5), np.uint8)
    tensors, pilot, _ = scanned(tmp_path / "x.safetensors", np.ones((2, 1, 5, 8), np.float32), "F32", parts)
    statistics = scan(tensors, parts, pilot, 4.0, on_hits=lambda hits: None)
    assert rows_of(statistics, "without_first", "F32").is_empty()
    assert rows_of(statistics, "all", "F32").select("low", "high", "values").rows() == [(1.0, 1.5, 80)]
    assert rows_of(statistics, "all", "F32").schema == pl.Schema(rows_of(statistics, "without_first", "F32").schema)
