"""Errors of the tensors in a dump, whose sequences differ in length, against rounding by hand."""

import numpy as np
import polars as pl
import pytest

from fake_run import RULES
from outlier_features.dims.dims_schema import DIMS
from outlier_features.dims.dims_schema import MASSIVE as MASSIVE_TABLE
from outlier_features.dump.dumps import Dump, DumpRange
from outlier_features.errors import InputError
from outlier_features.files.tables import read_table, write_table
from outlier_features.quantize.quantization_schema import QUANTIZATION
from outlier_features.quantize.quantize_dump import quantize_dump
from outlier_features.quantize.schemes import SCHEMES
from test_dumps import described, save
from test_quantize_sites import decibels
from test_schemes import by_hand

SHAPE = (5, 3, 4, 40)  # sequences, layers, tokens, dims
SELECTED = 3


def quantized(folder, site):
    """The table of a dump with one site, and its values."""
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    x[..., SELECTED] *= 50
    file = save(folder / "dump.safetensors", acts=x)
    run = described(folder, [file], {site: "acts"}, "special")
    provenance = {**run.provenance, "rules": RULES, "sites": [site]}
    files = folder / "tokens.safetensors", folder / "dims.parquet", folder / "massive.parquet"
    dim = {"population": "all", "rule": "dettmers", "sites": "attn_norm", "dim": SELECTED, "selected": True}
    write_table(files[1], pl.DataFrame([dim], schema=DIMS.schema, strict=False), DIMS, provenance)
    write_table(files[2], pl.DataFrame(schema=MASSIVE_TABLE.schema), MASSIVE_TABLE, provenance)
    whole = Dump.open({"dump": [str(file)], "keys": {site: "acts"}}).whole
    where = DumpRange(whole.source, whole.start, whole.stop)
    out = folder / "quantization.parquet"
    quantize_dump(*files, where, out, schemes=list(SCHEMES), remedied=["int8_token"], seeds=2)
    return read_table(out, QUANTIZATION)[0], x


def test_every_layer_as_by_hand(tmp_path):
    rows, x = quantized(tmp_path, "attn_norm")
    assert set(rows["quantized"]) == {"x"}
    assert rows["output_error"].null_count() == rows["module"].null_count() == len(rows)
    for layer in range(SHAPE[1]):
        static = np.abs(x[:, layer]).max()
        for population, first in (("all", 0), ("without_first", 1)):
            exact = x[:, layer, first:].reshape(-1, SHAPE[3])
            of = {"layer": layer, "site": "attn_norm", "population": population}
            for scheme in SCHEMES:
                q = np.concatenate([by_hand(scheme, one, static)[first:] for one in x[:, layer]])
                found = rows.filter(**of, scheme=scheme, remedy="none")["sqnr_db"].item()
                assert found == pytest.approx(decibels(exact, q), abs=1e-3)
            q = np.insert(by_hand("int8_token", np.delete(exact, SELECTED, 1), None), SELECTED, exact[:, SELECTED], 1)
            found = rows.filter(**of, scheme="int8_token", remedy="exact_dims")["sqnr_db"].item()
            assert found == pytest.approx(decibels(exact, q), abs=1e-3)
    assert not rows["remedy"].is_in(["smooth", "exact_super_weight"]).any()
    assert len(rows.filter(remedy="exact_random", population="all", layer=0)) == 2


def test_a_dump_of_what_no_linear_layer_reads_has_none(tmp_path):
    with pytest.raises(InputError, match="linear layers read"):
        quantized(tmp_path, "resid_post")
