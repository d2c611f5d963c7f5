"""Losses of quantized models equal those of plain torch models that are rounded by hand, layer by layer."""

import copy
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import zoo
from outlier_features.ablate.subject import Subject
from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.channels.linear_layers import find_linear_inputs
from outlier_features.channels.prefix_schema import PREFIX_TOKENS
from outlier_features.detect.layers_schema import LAYERS
from outlier_features.dims.dims_schema import DIMS
from outlier_features.errors import InputError
from outlier_features.files.quantization_columns import EXACT_DIMS, EXACT_POSITIONS, EXACT_SUPER_WEIGHT
from outlier_features.files.tables import public_tables, read_table, write_table
from outlier_features.files.tensorfile import write_tensors
from outlier_features.model.models import load_model
from outlier_features.model.sites import find_sites
from outlier_features.quantize.divergence import divergence
from outlier_features.quantize.loss_variants import Measured, computed, kept_variants, part_variants, whole_variants
from outlier_features.quantize.prefix_trial import PrefixPasses, try_prefix
from outlier_features.quantize.quantization_schema import QUANTIZATION
from outlier_features.quantize.quantize_model import quantize_model
from outlier_features.quantize.quantizing_passes import Quantized, QuantizingPasses
from outlier_features.quantize.remedies import RunFindings
from outlier_features.quantize.schemes import SCHEMES
from outlier_features.quantize.sensitivity import orders_of, sensitivity, sensitivity_rows, signal_rows
from outlier_features.tokens.tokens import Tokens
from test_ablate_dims import sample
from test_rank_experts import Run, filled

NOTHING = RunFindings({}, {}, 2)
# Where a value lies between two steps, another order of a sum may move it by one.
BOUND = {"rtol": 1e-3, "atol": 1e-3}
GRID = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def integers(x, bits, scale):
    most = 2 ** (bits - 1) - 1
    step = np.where(scale > 0, scale, 1) / most
    return np.clip(np.round(x / step), -most, most) * step


def rowwise(x, bits):
    return integers(x, bits, abs(x).max(-1, keepdims=True))


def in_parts(x, size, rounded):
    return np.concatenate([rounded(x[:, n : n + size]) for n in range(0, x.shape[1], size)], 1)


def e4m3(x, scale):
    step = np.where(scale > 0, scale, 1) / 448
    return torch.from_numpy(np.clip(x / step, -448, 448)).to(torch.float8_e4m3fn).float().numpy() * step


def mx(x):
    largest = abs(x).max(-1, keepdims=True)
    step = np.exp2(np.floor(np.log2(np.where(largest > 0, largest, 1))) - 2)
    found = np.minimum(abs(x) / step, 6)
    # The nearest, and of two as near the one with an even mantissa, whose index is even.
    distance = abs(found[..., None] - GRID) + 1e-9 * (np.arange(8) % 2)
    return np.sign(x) * GRID[distance.argmin(-1)] * step


def input_by_hand(scheme, x, largest):
    """The rows (n, width) of a sequence."""
    return {
        "int8_tensor_static": lambda: integers(x, 8, largest),
        "int8_tensor_dynamic": lambda: integers(x, 8, abs(x).max()),
        "int8_token": lambda: rowwise(x, 8),
        "int8_vector": lambda: rowwise(x, 8),
        "int4_token": lambda: rowwise(x, 4),
        "int4_group128": lambda: in_parts(x, 128, lambda part: rowwise(part, 4)),
        "fp8_tensor": lambda: e4m3(x, largest),
        "fp8_token": lambda: e4m3(x, abs(x).max(-1, keepdims=True)),
        "mxfp4": lambda: in_parts(x, 32, mx),
    }[scheme]().astype(np.float32)


def weight_by_hand(scheme, w):
    """A matrix (out, in)."""
    if scheme.startswith("int4"):
        return in_parts(w, 128, lambda part: rowwise(part, 4)).astype(np.float32)
    if scheme.startswith("fp8"):
        return e4m3(w, abs(w).max(1, keepdims=True)).astype(np.float32)
    return (in_parts(w, 32, mx) if scheme == "mxfp4" else rowwise(w, 8)).astype(np.float32)


def outputs_by_hand(scheme, quantized, x, w, largest):
    """x (n, in) by w (out, in), rounded."""
    if scheme == "llm_int8":
        exact = (abs(x) >= 6).any(0)
        inner = rowwise(np.where(exact, 0, x), 8) if "x" in quantized else np.where(exact, 0, x)
        return inner @ (rowwise(w, 8) if "w" in quantized else w).T + np.where(exact, x, 0) @ w.T
    q = input_by_hand(scheme, x, largest) if "x" in quantized else x
    return q @ (weight_by_hand(scheme, w) if "w" in quantized else w).T


def matrix_of(module):
    w = module.weight.detach().numpy()
    return w.T if isinstance(module, Conv1D) else w


def linear_names(model):
    """Of the linear layers of the blocks."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and "head" not in name and not name.endswith(".gate")
    ]


def largest_inputs(model, tokens):
    """By name of each linear layer the largest abs(x) of each channel of its input over the sample's tokens."""
    found, handles = {}, []
    for name in linear_names(model):

        def look(module, args, name=name):
            rows = args[0].reshape(-1, args[0].shape[-1])[real]
            found[name] = np.maximum(found.get(name, 0), rows.abs().amax(0).numpy())

        handles.append(model.get_submodule(name).register_forward_pre_hook(look))
    for row, mask in zip(tokens.tokens, tokens.mask, strict=True):
        real = torch.from_numpy(mask)
        with torch.no_grad():
            model(torch.from_numpy(row).long()[None])
    for handle in handles:
        handle.remove()
    return found


def rounded_model(model, names, tokens, outputs):
    """A copy whose layers `names` give `outputs(name, x, w)`; of padding nothing is asked."""
    other = copy.deepcopy(model)
    outputs.of = other
    for name in names:

        def replace(module, args, output, name=name):
            x = args[0].reshape(-1, args[0].shape[-1])
            real = torch.from_numpy(tokens.mask[other.row])
            found = output.clone().reshape(len(x), -1)
            bias = 0 if module.bias is None else module.bias
            found[real] = torch.from_numpy(outputs(name, x[real].numpy(), matrix_of(module))) + bias
            return found.reshape(output.shape)

        other.get_submodule(name).register_forward_hook(replace)
    return other


def predictions(model, tokens):
    """Log probabilities (T - 1, V) of each sequence in float64."""
    found = []
    for number, row in enumerate(tokens.tokens):
        model.row = number
        with torch.no_grad():
            found.append(model(torch.from_numpy(row).long()[None]).logits[0, :-1].double().log_softmax(-1))
    return found


def scores_by_hand(model, other, tokens):
    """Sums of nll and KL (N,) over predicted tokens."""
    nll, kl = [], []
    for ids, mask, p, q in zip(
        tokens.tokens, tokens.mask, predictions(model, tokens), predictions(other, tokens), strict=True
    ):
        real = torch.from_numpy(mask[1:])
        nll.append(float((-q[range(len(ids) - 1), ids[1:]] * real).sum()))
        kl.append(float(((p.exp() * (p - q)).sum(-1) * real).sum()))
    return np.array(nll), np.array(kl)


def passes_of(loaded, tokens, findings=NOTHING, absmax=None, exact=None):
    inputs = inputs_of(loaded)
    largest = absmax or largest_inputs(loaded.model, tokens)
    known = {
        one.name: torch.from_numpy(np.asarray(largest.get(one.name, np.ones(one.width)), np.float32)) for one in inputs
    }
    exact = np.zeros_like(tokens.mask) if exact is None else exact
    return QuantizingPasses(
        Subject(lambda: loaded), tokens, 4, inputs=inputs, absmax=known, found=findings, exact=exact
    )


def inputs_of(loaded):
    found = find_linear_inputs(loaded, find_sites(loaded))
    return tuple(one for one in found.inputs if one.layer is not None)


def sums(measured, variant):
    rows = measured.by_sequence.filter(variant=variant)
    return rows["nll"].to_numpy(), (rows["kl"] * rows["tokens"]).to_numpy()


def whole(passes, scheme, quantized="xw", remedy="none", setting=None):
    return Quantized(tuple(range(len(passes.inputs))), scheme, quantized, remedy, setting)


def varied(name):
    """A model whose predictions are far from uniform, with an outlier dim, so that rounding costs something."""
    loaded = zoo.loaded(name)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return loaded


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_scheme_is_as_by_hand(name, scheme):
    loaded, tokens = varied(name), sample(lengths=(16, 16, 9))
    largest = largest_inputs(loaded.model, tokens)
    passes, names = passes_of(loaded, tokens), linear_names(loaded.model)
    assert sorted(names) == sorted(layer.name for one in passes.inputs for layer in one.layers)
    kinds = ("x", "w", "xw")
    before = copy.deepcopy(loaded.model.state_dict())
    measured = Measured.by(passes, [Quantized(), *(whole(passes, scheme, kind) for kind in kinds)])
    np.testing.assert_allclose(sums(measured, 0)[0], scores_by_hand(loaded.model, loaded.model, tokens)[0], rtol=1e-5)
    assert measured.by_sequence.filter(variant=0)["kl"].to_list() == [0.0] * 3
    for variant, kind in enumerate(kinds, 1):
        other = rounded_model(
            loaded.model, names, tokens, lambda n, x, w, k=kind: outputs_by_hand(scheme, k, x, w, largest[n].max())
        )
        nll, kl = scores_by_hand(loaded.model, other, tokens)
        found = sums(measured, variant)
        np.testing.assert_allclose(found[0], nll, **BOUND)
        np.testing.assert_allclose(found[1], kl, rtol=5e-2, atol=1e-3)
        assert kl.sum() > 1e-5
    after = loaded.model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all("forward" not in vars(module) for module in loaded.model.modules())


def test_experts_are_as_by_hand():
    loaded, tokens = varied("olmoe"), sample()
    torch.manual_seed(5)
    for parameter in loaded.model.parameters():
        if parameter.ndim == 3:
            parameter.data.normal_(0, 0.3)
    schemes = ("int8_token", "int4_token", "mxfp4")
    ones = {name: np.ones(64) for name in linear_names(loaded.model)}
    passes = passes_of(loaded, tokens, absmax=ones)
    assert sum(bool(one.experts) for one in passes.inputs) == 2 * zoo.BLOCKS
    assert not any(
        "gate" in layer.name.split(".")[-1] for one in passes.inputs for layer in one.layers if not one.experts
    )
    measured = Measured.by(passes, [Quantized(), *(whole(passes, scheme) for scheme in schemes)])
    for variant, scheme in enumerate(schemes, 1):
        other = rounded_model(
            loaded.model,
            linear_names(loaded.model),
            tokens,
            lambda n, x, w, s=scheme: outputs_by_hand(s, "xw", x, w, 0),
        )
        for block in other.model.layers:
            block.mlp.experts.forward = experts_by_hand(block.mlp.experts, scheme)
        nll, kl = scores_by_hand(loaded.model, other, tokens)
        np.testing.assert_allclose(sums(measured, variant)[0], nll, **BOUND)
        np.testing.assert_allclose(sums(measured, variant)[1], kl, rtol=5e-2, atol=1e-3)
    again = passes.scores([Quantized()])
    assert again.equals(measured.by_sequence.filter(variant=0))


def experts_by_hand(module, scheme):
    """Token by token."""
    first, last = module.gate_up_proj.detach().numpy(), module.down_proj.detach().numpy()

    def forward(hidden, index, weight):
        total = np.zeros(hidden.shape, np.float32)
        for token, (chosen, weights) in enumerate(zip(index.tolist(), weight.tolist(), strict=True)):
            for expert, share in zip(chosen, weights, strict=True):
                both = outputs_by_hand(scheme, "xw", hidden[token : token + 1].numpy(), first[expert], 0)
                gate, up = np.split(both, 2, axis=1)
                neurons = (gate / (1 + np.exp(-gate)) * up).astype(np.float32)
                total[token] += share * outputs_by_hand(scheme, "xw", neurons, last[expert], 0)[0]
        return torch.from_numpy(total)

    return forward


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_remedies_are_as_by_hand(name):
    loaded, tokens = varied(name), sample(special=[(1, 4)])
    names, largest = linear_names(loaded.model), largest_inputs(loaded.model, tokens)
    inputs = inputs_of(loaded)
    groups = {layer.name: one for one in inputs for layer in one.layers}
    weighed = next(n for n in names if groups[n].site == "mlp_act" and groups[n].layer == 2)
    findings = RunFindings({"mlp_norm": ([3, 40], "mine")}, {weighed: [(5, 9), (0, 1)]}, 2)
    exact = tokens.parts == 0
    passes = passes_of(loaded, tokens, findings, exact=exact)
    heaviest = {
        n: np.max([abs(matrix_of(loaded.model.get_submodule(layer.name))).max(0) for layer in groups[n].layers], axis=0)
        for n in names
    }

    def dims(n, x, w):
        if groups[n].site != "mlp_norm":
            return outputs_by_hand("int4_token", "xw", x, w, 0)
        rest = np.ones(x.shape[1])
        rest[[3, 40]] = 0
        rest = rest.astype(np.float32)
        return outputs_by_hand("int4_token", "xw", x * rest, w * rest, 0) + (x * (1 - rest)) @ w.T

    def weights(n, x, w):
        if n != weighed:
            return outputs_by_hand("int4_token", "xw", x, w, 0)
        rounded = w.copy()
        rounded[[5, 0], [9, 1]] = 0
        rounded = weight_by_hand("int4_token", rounded)
        rounded[[5, 0], [9, 1]] = w[[5, 0], [9, 1]]
        return input_by_hand("int4_token", x, 0) @ rounded.T

    def smooth(n, x, w):
        scale = np.sqrt(largest[n] / heaviest[n]).astype(np.float32)
        return outputs_by_hand("int4_token", "xw", x / scale, w * scale, 0)

    tried = {
        (EXACT_DIMS, None): dims, (EXACT_SUPER_WEIGHT, None): weights, ("smooth", "alpha 0.5"): smooth,
        (EXACT_POSITIONS, None): keeping(tokens, exact),
    }  # fmt: skip
    listed = {(one.remedy, one.setting) for one in whole_variants(inputs, findings, ["int4_token"], ["int4_token"])}
    assert listed >= {*tried, ("exact_random", "seed 0"), ("exact_random", "seed 1"), ("hadamard", "seed 0")}
    measured = Measured.by(passes, [Quantized(), *(whole(passes, "int4_token", "xw", *one) for one in tried)])
    losses = []
    for variant, outputs in enumerate(tried.values(), 1):
        hand = rounded_model(loaded.model, names, tokens, outputs)
        nll, kl = scores_by_hand(loaded.model, hand, tokens)
        np.testing.assert_allclose(sums(measured, variant)[0], nll, rtol=5e-3)
        np.testing.assert_allclose(sums(measured, variant)[1], kl, rtol=5e-2)
        losses.append(kl.sum())
    assert len({round(loss, 3) for loss in losses}) == 4


def test_a_planted_outlier_dim_does_damage_that_is_known():
    """Gain 1024 times as large, weights as much smaller: the model is the same, and so is what rounding costs it once
    that dim is exact."""
    loaded, tokens = varied("llama"), sample()
    findings = RunFindings({"mlp_norm": ([7], "mine")}, {}, 2)
    tried = [("none", None), (EXACT_DIMS, None), ("exact_random", "seed 0"), ("exact_random", "seed 1")]

    def costs():
        passes = passes_of(loaded, tokens, findings)
        rows = Measured.by(passes, [Quantized(), *(whole(passes, "int8_token", "xw", *one) for one in tried)]).scores()
        return rows["nll"][0], rows["kl"].to_list()[1:]

    before, (_, exact_before, *_) = costs()
    with torch.no_grad():
        for block in loaded.model.model.layers:
            block.post_attention_layernorm.weight[7] *= 1024
            for module in (block.mlp.gate_proj, block.mlp.up_proj):
                module.weight[:, 7] /= 1024
    after, (none, exact, *random) = costs()
    assert after == before
    assert exact == pytest.approx(exact_before, rel=1e-6)
    assert min(none, *random) > 20 * exact


def test_a_pass_that_begins_later_is_the_whole_pass(monkeypatch):
    loaded, tokens = varied("llama"), sample()
    passes = passes_of(loaded, tokens)
    variants = [Quantized(), *part_variants(passes.inputs, "int4_token")]
    assert len(variants) == 1 + 4 + len(passes.inputs)
    found = passes.scores(variants)
    began = []
    start = passes._prefixes.start
    monkeypatch.setattr(passes._prefixes, "start", lambda wanted: began.append(start(wanted)) or 0)
    every = passes.scores(variants)
    assert max(began) == zoo.BLOCKS - 1
    for name in ("nll", "kl"):
        np.testing.assert_allclose(found[name].to_numpy(), every[name].to_numpy(), rtol=1e-6, atol=1e-9)
    assert passes.scores(variants[:1]).equals(found.filter(variant=0))  # nothing is left of any


def test_divergence_is_that_of_its_formula():
    torch.manual_seed(0)
    p = torch.randn(5, 50_000) * 3
    for q in (torch.randn(5, 50_000) * 3 + 100, p + 1e-2 * torch.randn(5, 50_000)):
        one, other = p.double().log_softmax(-1), q.double().log_softmax(-1)
        expected = (one.exp() * (one - other)).sum(-1)
        found = divergence(p.log_softmax(-1), q).double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)
    assert not divergence(p.log_softmax(-1), p).any()


def test_what_computes_the_same_is_run_once():
    loaded, tokens = zoo.loaded("llama"), sample()
    passes = passes_of(loaded, tokens)
    variants = [Quantized(), *(whole(passes, s, k) for s in SCHEMES for k in ("x", "w", "xw"))]
    assert len({computed(one) for one in variants}) < len(variants)
    run = []
    plain = passes.scores
    passes.scores = lambda these: run.extend(these) or plain(these)
    measured = Measured.by(passes, variants)
    assert len(run) == len({computed(one) for one in variants})
    alone = Measured.by(passes_of(loaded, tokens), [Quantized(), variants[-1]])
    np.testing.assert_array_equal(sums(measured, len(variants) - 1), sums(alone, 1))
    rows = measured.rows(passes.inputs, NOTHING)
    of_both = rows.filter(quantized="xw", scheme="int8_token"), rows.filter(quantized="xw", scheme="int8_vector")
    assert of_both[0]["nll"].item() == of_both[1]["nll"].item()
    assert set(rows["modules"].to_list()) == {0, 7 * zoo.BLOCKS}


def test_signals_are_ranked_and_the_rest_stays_within_the_budget():
    loaded = zoo.loaded("llama")
    inputs = inputs_of(loaded)
    rng = np.random.default_rng(0)
    alone = pl.DataFrame({"nll_change": rng.random(len(inputs)), "kl": rng.random(len(inputs))})
    channels = {
        one.name: {"absmax": rng.random(one.width).astype(np.float32), "mean_square": rng.random(one.width)}
        for one in inputs
    }
    layers = pl.DataFrame(
        {
            "population": "all",
            "site": "mlp_norm",
            "layer": range(zoo.BLOCKS),
            "kurtosis_flat_excess": [4.0, 1.0, 3.0, 2.0],
        }
    )
    errors = pl.DataFrame(
        [
            {"scheme": scheme, "remedy": "none", "quantized": "xw", "population": "all", "module": layer.name,
             "output_error": 10.0 * n + place if scheme == "int8_token" else -1.0}
            for scheme in ("int8_token", "mxfp4")
            for n, one in enumerate(inputs)
            for place, layer in enumerate(one.layers)
        ]
    )  # fmt: skip
    rows = sensitivity(inputs, alone, channels, layers, errors, "int8_token")
    for n, (one, row) in enumerate(zip(inputs, rows.iter_rows(named=True), strict=True)):
        absmax, square = channels[one.name].values()
        assert row["absmax_over_median"] == pytest.approx(absmax.max() / np.median(absmax))
        assert row["channel_spread"] == pytest.approx(absmax.max() / absmax.mean())
        assert row["kurtosis_channel_rms"] == pytest.approx((square**2).mean() / square.mean() ** 2)
        assert row["kurtosis"] == ([4.0, 1.0, 3.0, 2.0][one.layer] if one.site == "mlp_norm" else None)
        assert row["output_error"] == 10 * n + (len(one.layers) - 1) / 2
        assert row["rank_kl"] == 1 + (alone["kl"] > alone["kl"][n]).sum()
    orders = orders_of(rows)
    assert "kurtosis" not in orders and sorted(orders["random"]) == list(range(len(inputs)))  # known of one site alone
    assert orders["output_error"] == list(range(len(inputs)))[::-1]
    variants = [one for one in kept_variants(orders, "int8_token") if one.what.startswith("kept:kl:")]
    costly = np.argsort(-alone["kl"].to_numpy())
    assert [len(inputs) - len(one.inputs) for one in variants] == [1, 2, 4, 8]
    assert {*variants[2].inputs} == {*range(len(inputs))} - {*costly[:4].tolist()}
    changes = {"all": 0.5, "1": 0.3, "2": math.log(1.02) * 1.001, "4": math.log(1.02) * 0.999, "8": 0.0}
    losses = pl.DataFrame(
        [{"what": what if what == "all" else f"kept:{order}:{what}", "nll_change": change}
         for order in orders for what, change in changes.items()][: 5 * len(orders)]
    ).unique(maintain_order=True)  # fmt: skip
    kept = sensitivity_rows(rows, losses, 0.02)
    assert {*kept.filter("kept")["module"]} == {layer.name for n in costly[:4] for layer in inputs[n].layers}
    assert len(kept) == 7 * zoo.BLOCKS and kept["module"].n_unique() == len(kept)
    assert sensitivity_rows(rows, losses, 0.7)["kept"].sum() == 0
    nothing_helps = losses.with_columns(nll_change=pl.lit(None, pl.Float64))
    assert sensitivity_rows(rows, nothing_helps, 0.02)["kept"].all()
    signals = {row["order"]: row for row in signal_rows(rows, orders, losses, 0.02).iter_rows(named=True)}
    place = lambda values: np.argsort(np.argsort(values))  # noqa: E731
    expected = np.corrcoef(place(rows["channel_spread"].to_numpy()), place(alone["nll_change"].to_numpy()))[0, 1]
    assert signals["channel_spread"]["spearman"] == pytest.approx(expected)
    assert signals["nll_change"]["spearman"] == pytest.approx(1) and signals["kl"]["spearman_kl"] == pytest.approx(1)
    assert signals["kurtosis"]["inputs"] == zoo.BLOCKS and signals["kurtosis"]["kept"] is None
    assert signals["random"]["kept"] == 4


def test_a_prefix_is_tried_on_the_same_tokens():
    """By hand: ids put before each sequence, outputs of blocks looked at, and the tokens counted that are predicted
    without a prefix, too."""
    loaded, tokens, prefix = varied("llama"), sample(lengths=(16, 16, 9)), [7, 3]
    trial = try_prefix(
        PrefixPasses(
            Subject(lambda: loaded), tokens, 4, inputs=inputs_of(loaded), found=NOTHING,
            absmax={one.name: torch.ones(one.width) for one in inputs_of(loaded)}, exact=tokens.parts == 0,
        ),
        tokens, prefix, "int4_token", 256,
    )  # fmt: skip
    assert trial.select("prefix", "scheme", "exact").rows() == [
        (size, *rest) for size in (0, 2) for rest in ((None, None), ("int4_token", False), ("int4_token", True))
    ]
    names = linear_names(loaded.model)
    for size in (0, 2):
        rows = trial.filter(prefix=size).rows(named=True)
        put = np.tile(np.array(prefix[:size], np.int32), (3, 1))
        longer = replace(
            tokens, tokens=np.concatenate([put, tokens.tokens], 1),
            mask=np.concatenate([np.ones((3, size), bool), tokens.mask], 1),
        )  # fmt: skip
        exact = np.zeros_like(longer.mask)
        exact[:, : size or 1] = True

        counted = tokens.mask[:, 1:].sum()
        plain = predictions(loaded.model, longer)
        for row, keep in zip(rows, (None, False, True), strict=True):
            hand = loaded.model
            if keep is not None:
                hand = rounded_model(loaded.model, names, longer, keeping(longer, exact & keep))
            nll = kl = 0.0
            for p, q, ids, mask in zip(plain, predictions(hand, longer), longer.tokens, tokens.mask, strict=True):
                real = torch.from_numpy(mask[1:])
                q, p, ids = q[size:], p[size:], ids[size + 1 :]
                nll -= float((q[range(len(ids)), ids] * real).sum())
                kl += float(((p.exp() * (p - q)).sum(-1) * real).sum())
            assert row["tokens"] == counted
            assert row["nll"] == pytest.approx(nll / counted, rel=2e-3)
            assert row["kl"] == pytest.approx(kl / counted, rel=5e-2, abs=1e-9)
        assert rows[0]["nll_change"] == 0 and rows[1]["nll_change"] == pytest.approx(rows[1]["nll"] - rows[0]["nll"])
        assert rows[0]["ratio"] == pytest.approx(largest_ratio(loaded.model, longer, size), rel=1e-5)


def keeping(tokens, exact):
    """Outputs in four bits, but at some tokens (N, T); the copy of the model that they are for is put in `of`."""

    def outputs(n, x, w):
        found = outputs_by_hand("int4_token", "xw", x, w, 0)
        rows = exact[outputs.of.row][tokens.mask[outputs.of.row]]
        found[rows] = (x @ w.T)[rows]
        return found

    return outputs


def largest_ratio(model, tokens, size):
    """The largest abs(x) of a block's output behind the prefix over their median, in any block and sequence."""
    found, handles = [], []

    def look(module, args, output):
        mask = tokens.mask[model.row][size:]
        x = (output if torch.is_tensor(output) else output[0]).reshape(tokens.mask.shape[1], -1)
        x = x[size:][mask].abs().numpy()
        found.append(x.max() / np.sort(x, axis=None)[(x.size - 1) // 2])

    for block in model.model.layers:
        handles.append(block.register_forward_hook(look))
    for number, row in enumerate(tokens.tokens):
        model.row = number
        with torch.no_grad():
            model(torch.from_numpy(row).long()[None])
    for handle in handles:
        handle.remove()
    return max(found)


class QuantizedRun(Run):
    """What the rule reads of a tiny model."""

    def __init__(self, directory, name, **provenance):
        super().__init__(directory, zoo.save(name, directory / "model"), [])
        self.provenance |= provenance
        empty = {"super_weights": SUPER_WEIGHTS, "layers": LAYERS, "quantization": QUANTIZATION, "dims": DIMS}
        for file, table in empty.items():
            write_table(directory / f"{file}.parquet", pl.DataFrame(schema=table.schema), table, self.provenance)
        prefix = [
            {"token_id": 9, "chosen": False},
            {"token_id": 3, "chosen": True, "prefix_position": 1},
            {"token_id": 5, "chosen": True, "prefix_position": 0},
        ]
        write_table(
            directory / "prefix_tokens.parquet", filled(prefix, PREFIX_TOKENS.schema), PREFIX_TOKENS, self.provenance
        )
        self.tokens = Tokens.read(directory / "tokens.safetensors")

    def channel_stats(self, but=lambda name: False):
        loaded = load_model(
            self.directory / "model", dtype="float32", device="cpu", attention="eager", trust_remote_code=False
        )
        largest = {n: value for n, value in largest_inputs(loaded.model, self.tokens).items() if not but(n)}
        arrays = {f"{name}.absmax": value.astype(np.float32) for name, value in largest.items()}
        arrays |= {f"{name}.mean_square": np.square(value, dtype=np.float64) for name, value in largest.items()}
        arrays |= {f"{name}.count": np.array([36]) for name in largest}
        write_tensors(self.directory / "channel_stats.safetensors", arrays, self.provenance)

    def quantize(self, **changes):
        names = ("quantization_loss", "quantization_loss_sequences", "quantization_sensitivity",
                 "quantization_signals", "prefix_trial")  # fmt: skip
        read = ("dims", "massive", "super_weights", "layers", "prefix_tokens", "quantization")
        settings = {
            "schemes": ["int8_token", "int4_token"], "remedied": ["int4_token"], "loss_scheme": "int4_token",
            "budget": 0.01, "seeds": 2, "sequences": 2, "length": 10, "batch_size": 4, "dtype": "float32",
            "device": "cpu", "attention": "eager", "threads": 1, "trust_remote_code": False,
        }  # fmt: skip
        quantize_model(
            source=self.directory / "source.json", tokens=self.directory / "tokens.safetensors",
            channel_stats=self.directory / "channel_stats.safetensors",
            **{name: self.directory / f"{name}.parquet" for name in (*read, *names)}, **settings | changes,
        )  # fmt: skip
        tables = public_tables()
        return {name: read_table(self.directory / f"{name}.parquet", tables[name]) for name in names}


def test_the_rule_writes_its_tables(tmp_path):
    run = QuantizedRun(tmp_path, "llama")
    run.channel_stats()
    tables = run.quantize()
    losses, provenance = tables["quantization_loss"]
    assert losses["variant"].to_list() == list(range(len(losses))) and losses["nll"].null_count() == 0
    assert losses["what"].to_list()[0] is None and losses["nll_change"][0] == 0 and losses["kl"][0] == 0
    asked = losses.filter(what="all", remedy="none")
    assert asked.select("scheme", "quantized").rows() == [
        (scheme, what) for scheme in ("int8_token", "int4_token") for what in ("x", "w", "xw")
    ]
    remedied = losses.filter(pl.col("remedy") != "none", scheme="int4_token")
    assert {"exact_positions", "smooth", "hadamard", "clip"} == {*remedied["remedy"]}
    costs = asked.filter(quantized="xw").sort("scheme", descending=True)["kl"].to_list()
    assert costs[0] < costs[1]  # eight bits, four bits
    assert (losses["low"] <= losses["high"]).all()
    each, _ = tables["quantization_loss_sequences"]
    assert len(each) == 2 * len(losses)
    rows, _ = tables["quantization_sensitivity"]
    for row in rows.iter_rows(named=True):
        own = losses.filter(what=f"module:{row['reads']}")
        assert own["nll_change"].item() == row["nll_change"] and own["kl"].item() == row["kl"]
    signals, _ = tables["quantization_signals"]
    assert signals["order"].to_list()[-1] == "random" and signals["kept"].drop_nulls().max() <= 4 * zoo.BLOCKS
    assert tables["prefix_trial"][0]["prefix"].to_list() == [0, 0, 0, 2, 2, 2]
    facts = provenance["quantize_model"]
    assert (facts["sequences"], facts["tokens"], facts["absent"], facts["prefix"]) == (2, 10, {}, [5, 3])


def test_layers_without_statistics_are_left_as_they_are(tmp_path):
    run = QuantizedRun(tmp_path, "llama")
    run.channel_stats(but=lambda name: "down_proj" in name)
    losses, provenance = run.quantize(remedied=[])["quantization_loss"]
    assert losses["modules"].max() == 6 * zoo.BLOCKS and not losses.filter(what="site:mlp_act").height
    names = {*provenance["quantize_model"]["absent"]}
    assert names == {f"model.layers.{layer}.mlp.down_proj" for layer in range(zoo.BLOCKS)}
    run.channel_stats(but=lambda name: True)
    with pytest.raises(InputError, match="llama: no linear layer"):
        run.quantize()


def test_a_model_without_loss_is_refused_in_a_sentence(tmp_path):
    bert = zoo.loaded("bert")
    assert bert.no_loss
    run = QuantizedRun(tmp_path, "bert", no_loss=bert.no_loss)
    with pytest.raises(InputError, match="causal") as error:
        run.quantize()
    assert error.value.found == bert.no_loss


@pytest.mark.parametrize("name", ["llama", "olmoe"])
def test_weights_that_are_read_on_demand_are_rounded_alike(name, tmp_path):
    zoo.save(name, tmp_path)
    plain, found = None, {}
    for placement in ("one", "layerwise"):
        loaded = load_model(
            tmp_path, dtype="float32", device="cpu", attention="eager", trust_remote_code=False, placement=placement,
            keep=0 if placement == "layerwise" else None,
        )  # fmt: skip
        if plain is None:
            plain = largest_inputs(loaded.model, sample())
        passes = passes_of(loaded, sample(), absmax=plain)
        whole_ones = [whole(passes, "int4_token"), whole(passes, "int8_token", "xw", "smooth", "alpha 0.5")]
        found[placement] = passes.scores([Quantized(), *whole_ones, *part_variants(passes.inputs, "int4_token")])
    assert loaded.on_demand is not None
    assert found["one"].equals(found["layerwise"])
