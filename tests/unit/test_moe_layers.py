"""Experts recorded while the model runs, against loops over the experts' own weights in plain torch."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

import zoo
from outlier_features.errors import InputError
from outlier_features.experts import moe_layers
from outlier_features.experts.moe_layers import find_moe_layers
from outlier_features.experts.record_experts import record_experts
from outlier_features.model.sites import find_sites
from outlier_features.tokens.tokens import Tokens

# Blocks with experts, and the shared expert's and its gate's name within the MLP.
MOE = {
    "olmoe": (range(4), None, None),
    "qwen3_moe": (range(4), None, None),
    "mixtral": (range(4), None, None),
    "gpt_oss": (range(4), None, None),
    "qwen3_next": (range(4), "shared_expert", "shared_expert_gate"),
    "glm4_moe": (range(1, 4), "shared_experts", None),
    "deepseek_v3": (range(1, 4), "shared_experts", None),
    "qwen2_moe": (range(4), "shared_expert", "shared_expert_gate"),
    "flex_olmo": (range(4), None, None),
}
POST_NORM = {"flex_olmo"}


def some_run(sequences=3, length=14, shorter=None):
    """Tokens of a run; `shorter`: sequence 1 has only so many, the rest is padding."""
    ids = np.random.default_rng(3).integers(3, zoo.VOCABULARY, (sequences, length)).astype(np.int32)
    mask = np.ones_like(ids, bool)
    if shorter:
        mask[1, shorter:] = False
    return Tokens(ids, np.zeros_like(mask), mask, np.zeros((*ids.shape, 2), np.int32), {})


def prepared(name, dtype="float32", **changes):
    loaded = zoo.loaded(name, dtype, **changes)
    torch.manual_seed(4)
    for parameter in loaded.model.parameters():  # random models write next to nothing
        if parameter.ndim == 3:
            parameter.data.normal_(0, 0.3)
        elif parameter.ndim == 2:
            parameter.data.mul_(3)
    return loaded, find_moe_layers(loaded, find_sites(loaded))


def neurons_by_hand(module, expert, x):
    """What the down projection of one routed expert reads, (n, M), written out for each layout of the weights."""
    if hasattr(module, "gate_up_proj_bias"):  # gpt_oss: input first, gate and up interleaved, both with biases
        both = x @ module.gate_up_proj[expert] + module.gate_up_proj_bias[expert]
        gate, up = both[:, 0::2].clamp(max=module.limit), both[:, 1::2].clamp(-module.limit, module.limit)
        return gate / (1 + torch.exp(-module.alpha * gate)) * (up + 1)
    width = module.gate_up_proj.shape[1] // 2
    gate = functional.linear(x, module.gate_up_proj[expert, :width])
    up = functional.linear(x, module.gate_up_proj[expert, width:])
    return gate / (1 + torch.exp(-gate)) * up


def expert_by_hand(module, expert, x):
    """Output of one routed expert (n, H)."""
    neurons = neurons_by_hand(module, expert, x)
    if hasattr(module, "gate_up_proj_bias"):
        return neurons @ module.down_proj[expert] + module.down_proj_bias[expert]
    return functional.linear(neurons, module.down_proj[expert])


def seen_by_hooks(loaded, ids):
    """Per block with experts: the MLP's input, the router's weights and choices, its output, the block's in between."""
    seen, handles = {}, []
    for index, block in enumerate(loaded.base.layers):
        if not hasattr(block.mlp, "experts"):
            continue
        router = block.mlp.router if hasattr(block.mlp, "router") else block.mlp.gate
        here = seen[index] = {"mlp": block.mlp}

        def keep(name, here=here):
            def hook(module, args, output):
                here[name] = (args, output)

            return hook

        handles += [router.register_forward_hook(keep("router")), block.mlp.register_forward_hook(keep("mlp_call"))]
        if hasattr(block, "post_feedforward_layernorm"):
            handles.append(block.post_feedforward_layernorm.register_forward_hook(keep("post_norm")))
    with torch.no_grad():
        loaded.base(torch.from_numpy(ids.astype(np.int64))[None])
    for handle in handles:
        handle.remove()
    return seen


def parts_by_hand(here, shared, gate):
    """[(part, expert, rows, output, weight)] of one block and sequence, and the MLP's output (T, H)."""
    (hidden, *_), output = here["mlp_call"]
    x = hidden.reshape(-1, hidden.shape[-1])
    _, weights, chosen = here["router"][1]
    parts = []
    with torch.no_grad():
        for expert in range(zoo.EXPERTS):
            rows, slots = torch.nonzero(chosen == expert, as_tuple=True)
            if len(rows):
                out = expert_by_hand(here["mlp"].experts, expert, x[rows])
                parts.append(("expert", expert, rows, out, weights[rows, slots]))
        if shared:
            module = here["mlp"].get_submodule(shared)
            out = module.down_proj(functional.silu(module.gate_proj(x)) * module.up_proj(x))
            scale = 1 / (1 + torch.exp(-here["mlp"].get_submodule(gate)(x)[:, 0])) if gate else torch.ones(len(x))
            parts.append(("shared", None, torch.arange(len(x)), out, scale))
    whole = output[0] if isinstance(output, tuple) else output
    return parts, whole.reshape(-1, whole.shape[-1])


@pytest.mark.parametrize("name", MOE)
def test_maxima_are_those_of_loops_over_the_weights(name):
    loaded, found = prepared(name)
    blocks, shared, gate = MOE[name]
    assert found.absent is None and [layer.layer for layer in found.layers] == list(blocks)
    run = some_run(shorter=9)
    maxima = record_experts(loaded, found.layers, run, ranked=[0, 1], locations=[]).maxima
    assert len(maxima) == len(blocks) * (zoo.EXPERTS + bool(shared))
    expected: dict[tuple, dict] = {}
    for sequence in (0, 1):
        seen = seen_by_hooks(loaded, run.tokens[sequence][run.mask[sequence]])
        for layer, here in seen.items():
            for part, expert, rows, out, weight in parts_by_hand(here, shared, gate)[0]:
                one = expected.setdefault((layer, part, expert), {"all": [], "weights": []})
                one["weights"] += weight.tolist()
                one["all"].append((sequence, rows, out, weight))
                if part == "expert":
                    x = here["mlp_call"][0][0].reshape(-1, zoo.D_MODEL)[rows]
                    one.setdefault("read", []).append(neurons_by_hand(here["mlp"].experts, expert, x).abs())
    for row in maxima.iter_rows(named=True):
        one = expected.get((row["layer"], row["part"], row["expert"]))
        if one is None:
            assert row["max_abs"] is None and row["tokens_routed"] == 0
            continue
        largest, weighted, places = 0.0, 0.0, {}
        for sequence, rows, out, weight in one["all"]:
            largest = max(largest, float(out.abs().max()))
            weighted = max(weighted, float((out * weight[:, None]).abs().max()))
            for i, token in enumerate(rows.tolist()):
                places[sequence, token] = out[i]
        assert row["max_abs"] == pytest.approx(largest, rel=1e-4)
        assert row["max_abs_weighted"] == pytest.approx(weighted, rel=1e-4)
        if row["part"] == "expert":
            read = torch.cat(one["read"])
            assert row["max_abs_input"] == pytest.approx(read.max().item(), rel=1e-4)
            assert read[:, row["neuron"]].max().item() == pytest.approx(read.max().item(), rel=1e-4)
        assert row["tokens_routed"] == len(one["weights"])
        assert row["mean_weight"] == pytest.approx(np.mean(one["weights"]), rel=1e-4)
        there = places[row["sequence"], row["token"]][row["dim"]]
        assert abs(float(there)) == pytest.approx(largest, rel=1e-4)
    for layer in blocks:
        assert maxima.filter(layer=layer, part="expert")["tokens_routed"].sum() == 2 * (14 + 9)


@pytest.mark.parametrize("name", MOE)
def test_active_parameters_are_those_that_a_token_can_reach(name):
    """Of a block's experts, those that get a gradient from one token, counted weight tensor by weight tensor."""
    loaded, found = prepared(name)
    recorded = record_experts(loaded, found.layers, some_run(), ranked=[0], locations=[])
    loaded.model(torch.tensor([[5]])).logits.square().sum().backward()
    unused = 0
    for layer in MOE[name][0]:
        for parameter in loaded.base.layers[layer].mlp.experts.parameters():
            for weights, gradient in zip(parameter, parameter.grad, strict=True):
                unused += 0 if gradient.any() else weights.numel()
    total = sum(parameter.numel() for parameter in loaded.model.parameters())
    assert unused and recorded.active_parameters == total - unused


@pytest.mark.parametrize(("name", "dtype"), [*itertools.product(MOE, ["float32"]), ("qwen2_moe", "bfloat16")])
def test_parts_sum_to_the_mlps_output(name, dtype):
    loaded, found = prepared(name, dtype)
    blocks, shared, gate = MOE[name]
    run = some_run()
    locations = [(0, 3, 5), (0, 3, 60), (2, 13, 0)]
    parts = record_experts(loaded, found.layers, run, ranked=[], locations=locations).parts
    for sequence, token, dim in locations:
        seen = seen_by_hooks(loaded, run.tokens[sequence])
        for layer in blocks:
            by_hand, whole = parts_by_hand(seen[layer], shared, gate)
            here = parts.filter(sequence=sequence, token=token, dim=dim, layer=layer)
            wanted = {
                (part, expert): (float(weight[i]), float(out[i, dim]))
                for part, expert, rows, out, weight in by_hand
                for i in range(len(rows))
                if int(rows[i]) == token
            }
            found_parts = {(row["part"], row["expert"]): row for row in here.iter_rows(named=True)}
            assert found_parts.keys() == wanted.keys() and len(here) == len(found_parts)
            size = sum(abs(weight * value) for weight, value in wanted.values())
            near = (5e-2 if dtype == "bfloat16" else 2e-4) * size
            for key, (weight, value) in wanted.items():
                assert found_parts[key]["weight"] == pytest.approx(weight, rel=1e-2 if dtype == "bfloat16" else 1e-4)
                assert found_parts[key]["weighted"] == pytest.approx(weight * value, abs=near)
            assert sum(here["weighted"]) == pytest.approx(float(whole[token, dim]), abs=near)
            assert here["whole"].n_unique() == here["mlp_out"].n_unique() == 1
            assert here["whole"][0] == pytest.approx(float(whole[token, dim]), abs=near)
            added = seen[layer]["post_norm"][1][0] if name in POST_NORM else whole
            assert here["mlp_out"][0] == pytest.approx(float(added[token, dim]), rel=1e-3, abs=near)
            if name in POST_NORM:
                assert here["mlp_out"][0] != pytest.approx(here["whole"][0], rel=1e-2)


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3"])
def test_recording_leaves_the_model_as_it_was(name):
    loaded, found = prepared(name)
    before = loaded.model.get_experts_implementation()
    ids = torch.from_numpy(some_run().tokens[:1].astype(np.int64))
    with torch.no_grad():
        plain = loaded.model(ids).logits
        calls = []
        with moe_layers.recording(loaded.model, calls.append):
            recorded = loaded.model(ids).logits
        again = loaded.model(ids).logits
    assert len({call.experts for call in calls}) == len(found.layers)
    assert torch.equal(plain, again) and loaded.model.get_experts_implementation() == before
    assert torch.allclose(plain, recorded, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("llama4_text", "the experts of block 0 (Llama4TextExperts) are not one module behind transformers' experts"),
        (
            "granitemoeshared",
            "mlp_out of block 0 is absent: the block has 2 parts that treat each token alone by matrices",
        ),
        ("llama", "no block routes tokens to experts"),
    ],
)
def test_what_cannot_be_recorded_is_said_in_a_sentence(name, reason):
    found = find_moe_layers(loaded := zoo.loaded(name), find_sites(loaded))
    assert found.layers == () and found.absent.startswith(reason)


def test_a_sum_that_no_module_explains_is_refused():
    """A routed sum that the MLP scales afterwards is not the sum of the recorded parts."""
    loaded = zoo.loaded("olmoe")
    mlp = loaded.base.layers[2].mlp
    forward = mlp.forward
    mlp.forward = lambda hidden: 1.5 * forward(hidden)
    found = find_moe_layers(loaded, find_sites(loaded))
    assert found.absent == (
        "the experts of block 2 and no one module beside them sum to the output of model.layers.2.mlp"
    )


def test_a_module_that_adds_up_in_another_way_is_refused(monkeypatch):
    loaded = zoo.loaded("olmoe")
    blocks = find_sites(loaded)
    right = moe_layers.run_experts
    monkeypatch.setattr(moe_layers, "run_experts", lambda *arguments: 1.01 * right(*arguments))
    assert "block 0 do not sum to what their module gives" in find_moe_layers(loaded, blocks).absent


def test_parts_that_do_not_sum_stop_the_run():
    """Checked on the run's own tokens too: here the MLP is changed after the probe."""
    loaded, found = prepared("olmoe")
    mlp = loaded.base.layers[1].mlp
    forward = mlp.forward
    mlp.forward = lambda hidden: 1.5 * forward(hidden)
    with pytest.raises(InputError, match="the parts of layer 1 at sequence 0, token 3, dim 5 sum to"):
        record_experts(loaded, found.layers, some_run(), ranked=[], locations=[(0, 3, 5)])


def test_an_output_that_is_not_finite_stops_the_run():
    loaded, found = prepared("olmoe")
    loaded.base.layers[1].mlp.experts.down_proj.data[:, 7, 3] = float("inf")
    with pytest.raises(InputError, match=r"float32 gives expert outputs that are not finite in sequence 0"):
        record_experts(loaded, found.layers, some_run(), ranked=[0], locations=[])
