"""Errors of inputs, weights and outputs of linear layers, against plain transformers and rounding by hand."""

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

import zoo
from fake_run import RULES
from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.channels.merge_channels import merge_channels
from outlier_features.channels.record_channels import ChannelRecorder
from outlier_features.dims.dims_schema import DIMS
from outlier_features.dims.dims_schema import MASSIVE as MASSIVE_TABLE
from outlier_features.files.missing import MissingInput
from outlier_features.files.tables import read_table, write_table
from outlier_features.files.tensorfile import TensorFile, write_tensors
from outlier_features.model.models import load_model
from outlier_features.quantize.quantization_schema import QUANTIZATION, WEIGHT_OUTLIERS
from outlier_features.quantize.quantize_sites import quantize_sites
from outlier_features.quantize.schemes import SCHEMES
from test_extract_activations import SETTINGS, Run
from test_record_channels import LENGTHS, hooked_inputs, record
from test_schemes import by_hand
from tiny_project import byte_tokenizer

SELECTED, PLACE = 3, (2, 5)  # a dim that rule massive selects, where there is a massive activation
WEIGHT = (1, 4)
ASKED = {"schemes": list(SCHEMES), "remedied": ["int8_token", "int4_group128", "llm_int8"], "seeds": 2}


class Quantized:
    """What the rule writes of a run, all rows of inputs kept."""

    def __init__(self, run, folder, output_tokens=10_000, places=(PLACE,), **settings):
        self.run = run
        byte_tokenizer(run.directory / "model", template=False)
        chunks = [file.path for file in record(run, folder)]
        self.files = {name: folder / f"{name}.parquet" for name in ("dims", "massive", "super_weights")}
        self.stats = folder / "channel_stats.safetensors"
        merge_channels(chunks, run.tokens, run.source, self.stats, folder / "prefix_tokens.parquet")
        provenance = {**TensorFile(self.stats).provenance, "rules": RULES, "no_loss": None}
        provenance.pop("missing", None)
        dim = {"population": "all", "rule": "massive", "sites": "resid_post", "dim": SELECTED, "selected": True}
        write_table(self.files["dims"], filled([dim], DIMS), DIMS, provenance)
        massive = [{"sequence": n, "token": t, "massive_all": True} for n, t in places if n < len(run.ids)]
        write_table(self.files["massive"], filled(massive, MASSIVE_TABLE), MASSIVE_TABLE, provenance)
        self.super_module = next((name for name, _ in hooked_inputs(run) if name.endswith("down_proj")), None)
        weights = [{"module": self.super_module, "row": WEIGHT[0], "col": WEIGHT[1]}] if self.super_module else []
        write_table(self.files["super_weights"], filled(weights, SUPER_WEIGHTS), SUPER_WEIGHTS, provenance)
        outputs = [folder / name for name in ("quantization.parquet", "weight_outliers.parquet")]
        own = {name: SETTINGS[name] for name in SETTINGS if name not in ("sites", "sample", "ranking", "recording")}
        quantize_sites(
            run.source, run.tokens, *self.files.values(), self.stats, *outputs,
            output_tokens=output_tokens, **{**ASKED, **own, **settings},
        )  # fmt: skip
        self.rows, self.provenance = read_table(outputs[0], QUANTIZATION)
        self.outliers = read_table(outputs[1], WEIGHT_OUTLIERS)[0]
        self.weights = dict(run.model().named_parameters())

    def matrix(self, module, expert=None):
        """(out, in)"""
        if expert is not None:
            return self.weights[module][expert].detach().numpy()
        value = self.weights[f"{module}.weight"].detach().numpy()
        return value.T if self.run.name == "gpt2" else value

    def row(self, **wanted):
        (found,) = self.rows.filter(**wanted).to_dicts()
        return found


def filled(rows, table):
    return pl.DataFrame(rows, schema=table.schema, strict=False)


def of_weight(scheme, weight):
    """Rounded by the scheme's partner, by hand."""
    names = {"int8": "int8_token", "int4": "int4_group128", "fp8": "fp8_token", "mxfp4": "mxfp4"}
    return by_hand(names[SCHEMES[scheme].format], weight, None)


def decibels(x, q):
    x, q = x.astype(np.float64), q.astype(np.float64)
    return 10 * np.log10((x**2).sum() / ((x - q) ** 2).sum())


def relative(found, expected):
    return np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64))


@pytest.fixture(scope="module", params=["llama", "gpt2", "bert"])
def quantized(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return Quantized(Run(folder, request.param, lengths=LENGTHS), folder / "run")


def test_every_layer_and_scheme_as_by_hand(quantized):
    read = {name: calls for (name, _), calls in hooked_inputs(quantized.run).items()}
    modules = quantized.rows["module"].unique().to_list()
    heads = {"lm_head"} & read.keys()
    assert set(modules) == {name for name in read if not name.startswith("pooler")} - heads
    for module in modules:
        weight, calls = quantized.matrix(module).astype(np.float32), read[module]
        static = max(np.abs(values).max() for values, _ in calls)
        for population, first in (("all", 0), ("without_first", 1)):
            x = [values[at >= first] for values, at in calls]
            exact = np.concatenate(x)
            for scheme in SCHEMES:
                # A scheme sees the whole sequence, whatever the population.
                rounded = [by_hand(scheme, values, static)[at >= first] for values, at in calls]
                q, w = np.concatenate(rounded), of_weight(scheme, weight)
                of = {"module": module, "scheme": scheme, "remedy": "none", "population": population}
                of_x, of_w, both = (quantized.row(**of, quantized=what) for what in ("x", "w", "xw"))
                # A product of a sequence without its padding has other last bits, and a value at a tie rounds either
                # way: of so few values, one is seen.
                assert of_x["sqnr_db"] == pytest.approx(decibels(exact, q), abs=0.05)
                assert of_w["sqnr_db"] == pytest.approx(decibels(weight, w), abs=1e-4)
                assert both["sqnr_db"] is None and of_x["tokens"] == len(exact) == of_x["output_tokens"]
                y = exact @ weight.T
                assert of_x["output_error"] == pytest.approx(relative(q @ weight.T, y), rel=0.01)
                if scheme != "llm_int8":  # whose exact columns have exact rows of the weight
                    assert of_w["output_error"] == pytest.approx(relative(exact @ w.T, y), rel=1e-3)
                    assert both["output_error"] == pytest.approx(relative(q @ w.T, y), rel=0.01)
                assert of_x["output_error_sd"] is None


def test_columns_that_llm_int8_leaves_meet_an_exact_weight(quantized):
    read = {name: calls for (name, _), calls in hooked_inputs(quantized.run).items()}
    for module in quantized.rows["module"].unique():
        weight = quantized.matrix(module).astype(np.float32)
        w, outputs, exact = of_weight("llm_int8", weight), [], []
        for values, _ in read[module]:
            kept = (np.abs(values) < 6).all(0)
            q = by_hand("llm_int8", values, None)
            outputs.append(q[:, kept] @ w[:, kept].T + q[:, ~kept] @ weight[:, ~kept].T)
            exact.append(values @ weight.T)
        row = quantized.row(module=module, scheme="llm_int8", remedy="none", quantized="xw", population="all")
        assert row["output_error"] == pytest.approx(relative(np.concatenate(outputs), np.concatenate(exact)), rel=0.01)


def test_remedies_as_by_hand(quantized):
    read = {name: calls for (name, _), calls in hooked_inputs(quantized.run).items()}
    sites = dict(quantized.rows.select("module", "site").unique().rows())
    tried = 0
    for module, site in sites.items():
        weight, scheme = quantized.matrix(module).astype(np.float32), "int8_token"
        exact = np.concatenate([values for values, _ in read[module]])
        of = {"module": module, "scheme": scheme, "population": "all"}
        if site in ("attn_norm", "mlp_norm", "resid_pre"):
            q = by_hand(scheme, np.delete(exact, SELECTED, axis=1), None)
            w = of_weight(scheme, np.delete(weight, SELECTED, axis=1))
            row = quantized.row(**of, remedy="exact_dims", quantized="x")
            assert row["sqnr_db"] > quantized.row(**of, remedy="none", quantized="x")["sqnr_db"] - 1
            both = q @ w.T + np.outer(exact[:, SELECTED], weight[:, SELECTED])
            row = quantized.row(**of, remedy="exact_dims", quantized="xw")
            assert row["output_error"] == pytest.approx(relative(both, exact @ weight.T), rel=0.01)
            assert len(quantized.rows.filter(**of, remedy="exact_random", quantized="xw")) == ASKED["seeds"]
            tried += 1
        else:
            assert not len(quantized.rows.filter(**of, remedy="exact_dims"))
        ends = []
        for sequence, (values, at) in enumerate(read[module]):
            here = (at == 0) | ((sequence == PLACE[0]) & (at == PLACE[1]))
            q = by_hand(scheme, values, None) @ of_weight(scheme, weight).T
            q[here] = values[here] @ weight.T
            ends.append(q)
        row = quantized.row(**of, remedy="exact_positions", quantized="xw")
        assert row["output_error"] == pytest.approx(relative(np.concatenate(ends), exact @ weight.T), rel=0.01)
        of_super = quantized.rows.filter(**of, remedy="exact_super_weight")
        assert len(of_super) == (2 if module == quantized.super_module else 0)
        if len(of_super):
            changed = weight.copy()
            changed[WEIGHT] = 0
            w = of_weight(scheme, changed)
            w[WEIGHT] = weight[WEIGHT]
            found = of_super.filter(quantized="w")["sqnr_db"].item()
            assert found == pytest.approx(decibels(weight, w), abs=1e-4)
    assert tried


def test_the_best_setting_is_marked(quantized):
    for remedy, settings in (("smooth", 3), ("clip", 2)):
        rows = quantized.rows.filter(remedy=remedy, quantized="xw", population="all", scheme="int8_token")
        for _, one in rows.group_by("module"):
            assert len(one) == settings
            assert one.filter("best")["output_error"].to_list()[0] == one["output_error"].min()


@pytest.mark.parametrize(("massive_tokens", "output_tokens"), [(1, 48), (14, 12)])
def test_a_sample_says_how_sure_it_is(massive_tokens, output_tokens, tmp_path):
    """Of what all tokens give, its errors are off by no more than a few of their standard errors: those of tokens that
    stay exact, too, of which some are drawn where they are more than are kept for certain."""
    run = Run(tmp_path, "llama", shape=(6, 128))
    places = [(n, 9 * t + 1) for n in range(6) for t in range(massive_tokens)]
    whole = Quantized(run, tmp_path / "whole", places=places).rows
    some = Quantized(run, tmp_path / "some", output_tokens=output_tokens, places=places).rows
    key = ["module", "scheme", "remedy", "setting", "quantized", "population"]
    both = some.join(whole, on=key, suffix="_whole", nulls_equal=True)
    assert len(both) == len(whole) == len(some)
    assert (both["output_tokens"] <= (4 + 1 + 1) * output_tokens).all()
    unremedied = both.filter(remedy="none")
    assert unremedied["sqnr_db"].eq_missing(unremedied["sqnr_db_whole"]).all()
    of_many = both.filter(pl.col("module").n_unique().over("remedy") > 1)
    for (remedy,), rows in of_many.group_by("remedy"):
        off = (rows["output_error"] - rows["output_error_whole"]) / rows["output_error_sd"]
        assert off.abs().mean() < 1.5 and off.abs().max() < 8 and off.std() > 0.4, remedy


def test_where_most_tokens_are_massive_only_first_ones_stay_exact(tmp_path):
    run = Run(tmp_path, "llama", shape=(6, 64))
    places = [(n, t) for n in range(6) for t in range(64) if t % 4]
    most, none = (Quantized(run, tmp_path / f"{len(of)}", places=of).rows for of in (places, ()))
    of = {"remedy": "exact_positions"}
    assert most.filter(**of)["setting"].unique().to_list() == ["first and special: 6 of 384 tokens; massive are 288"]
    assert none.filter(**of)["setting"].unique().to_list() == ["first, special and massive: 6 of 384 tokens"]
    assert_frame_equal(most.filter(**of).drop("setting"), none.filter(**of).drop("setting"))


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss"])
@pytest.mark.parametrize("lengths", [LENGTHS, [2]])
def test_experts_as_by_hand(name, lengths, tmp_path):
    """Each sees its own tokens of a sequence alone; the static scale is that of all, whether one read any or not."""
    run = Run(tmp_path, name, shape=(len(lengths), max(lengths)), lengths=lengths)
    found, read = Quantized(run, tmp_path / "run", remedied=[]), hooked_inputs(run)
    model = run.model()
    modules = {module for module, expert in read if expert is not None}
    for module in modules:
        transposed = model.get_submodule(module.rpartition(".")[0]).is_transposed
        calls = {expert: values for (one, expert), values in read.items() if one == module}
        assert len(lengths) > 1 or len(calls) < zoo.EXPERTS
        weights = [found.matrix(module, expert) for expert in range(zoo.EXPERTS)]
        weights = [weight.T if transposed else weight for weight in weights]
        static = max(np.abs(values).max() for one in calls.values() for values, _ in one)
        for scheme in SCHEMES:
            of = {"module": module, "scheme": scheme, "remedy": "none", "population": "all"}
            of_x, of_w, both = (found.row(**of, quantized=what) for what in ("x", "w", "xw"))
            exact, rounded, outputs = [], [], []
            lost = [of_weight(scheme, weight) for weight in weights]
            for expert, one in calls.items():
                for x, _ in one:
                    kept = (np.abs(x) < 6).all(0) if scheme == "llm_int8" else np.ones(x.shape[1], bool)
                    q, w = by_hand(scheme, x, static), np.where(kept, lost[expert], weights[expert])
                    exact.append(x)
                    rounded.append(q)
                    outputs.append((q @ w.T, x @ weights[expert].T))
            x, q = np.concatenate(exact), np.concatenate(rounded)
            assert of_x["tokens"] == len(x)
            assert of_x["sqnr_db"] == pytest.approx(decibels(x, q), abs=0.1)
            raveled = [np.concatenate([one.ravel() for one in side]) for side in (weights, lost)]
            assert of_w["sqnr_db"] == pytest.approx(decibels(*raveled), abs=1e-4)
            ends = [np.concatenate([pair[side] for pair in outputs]) for side in (0, 1)]
            assert both["output_error"] == pytest.approx(relative(*ends), rel=0.02)


@pytest.mark.parametrize("name", ["llama", "olmoe"])
def test_block_by_block(name, tmp_path, monkeypatch):
    """The same numbers, of weights that are read as often whatever the text; what a killed job left is not taken up."""
    read = []

    def from_disk(*args, **options):
        loaded = load_model(*args, **options, keep=0)
        read.append(loaded.on_demand)
        for folder in tmp_path.glob("**/layerwise"):
            place = folder / ".quantization.parquet.blocks"
            place.mkdir()
            (place / "00000.block").write_bytes(b"half")
        return loaded

    run = Run(tmp_path, name, lengths=LENGTHS)
    whole = Quantized(run, tmp_path / "whole").rows
    with monkeypatch.context() as patched:
        patched.setattr("outlier_features.quantize.quantize_sites.load_model", from_disk)
        for folder, of in (
            (tmp_path, run),
            (tmp_path / "less", Run(tmp_path / "less", name, (2, max(LENGTHS)), LENGTHS[:2])),
        ):
            found = Quantized(of, folder / "layerwise", placement="layerwise").rows
            assert not list(folder.glob("layerwise/.*"))
            if folder == tmp_path:
                assert_frame_equal(found, whole)
    assert read[0].times_read == read[1].times_read


def test_a_layer_whose_input_is_unknown_is_absent_alone(tmp_path, monkeypatch):
    receive, module = ChannelRecorder._receive, "model.layers.2.mlp.down_proj"

    def overflows(self, one, rows):
        values = rows.values * torch.inf if one.name == module else rows.values
        receive(self, one, type(rows)(values, rows.positions, rows.experts))

    monkeypatch.setattr(ChannelRecorder, "_receive", overflows)
    found = Quantized(Run(tmp_path, "llama"), tmp_path / "run")
    assert list(found.provenance["quantize"]["absent"]) == [module]
    assert module not in found.rows["module"] and "model.layers.1.mlp.down_proj" in found.rows["module"]


def test_one_planted_dim_causes_nearly_all_of_the_error(tmp_path):
    """One channel, 200 times the others, takes the scale of all: left exact, it takes the error with it."""
    run = Run(tmp_path, "llama")
    model = run.model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[SELECTED] = 200
    model.save_pretrained(run.directory / "model")
    rows = Quantized(run, tmp_path / "run").rows.filter(
        site="attn_norm", scheme="int8_token", quantized="x", population="all"
    )
    none, exact, random = (rows.filter(remedy=name)["sqnr_db"] for name in ("none", "exact_dims", "exact_random"))
    # Rounding is of the others, to 1/127 of the largest: of those alone the noise is some 200^2 smaller.
    assert none.max() < exact.min() and (random - none.mean()).abs().max() < 6
    lost = [10 ** (-values.mean() / 10) for values in (none, exact)]
    assert 1 - lost[1] / lost[0] > 0.99


def test_outliers_of_weights(quantized):
    for module in quantized.outliers["module"].unique():
        weight = np.abs(quantized.matrix(module))
        for axis, largest in (("in", weight.max(0)), ("out", weight.max(1))):
            rows = quantized.outliers.filter(module=module, axis=axis)
            ratio = largest / largest.mean()
            np.testing.assert_allclose(rows["max_abs"], largest[rows["dim"].to_numpy()], rtol=1e-6)
            np.testing.assert_allclose(rows["ratio"], ratio[rows["dim"].to_numpy()], rtol=1e-5)
            top = rows.filter(pl.col("rank") <= 5).sort("rank")["dim"].to_list()
            assert top == np.argsort(-ratio, kind="stable")[:5].tolist()
        assert quantized.outliers.filter(module=module, axis="in")["activation_rank"].min() == 1


def test_without_statistics_of_channels_there_is_no_table(tmp_path):
    run = Run(tmp_path, "llama")
    found = Quantized(run, tmp_path / "run", remedied=[], schemes=["int8_token"])
    missing = {"analysis": "channels", "cause": "off", "reason": "`skip` names channels", "log": "x.log"}
    write_tensors(found.stats, {}, {**TensorFile(found.stats).provenance, "missing": missing})
    own = {name: SETTINGS[name] for name in SETTINGS if name not in ("sites", "sample", "ranking", "recording")}
    with pytest.raises(MissingInput, match="channels"):
        quantize_sites(
            run.source, run.tokens, *found.files.values(), found.stats, tmp_path / "a", tmp_path / "b",
            output_tokens=9, **ASKED, **own,
        )  # fmt: skip
