"""Attention patterns: those of plain transformers' own `output_attentions`, one layer in memory at a time."""

import gc
import math
import weakref

import pytest
import torch

import zoo
from outlier_features.attention.attention_patterns import find_attention, run_patterns
from outlier_features.errors import InputError

IDS = torch.arange(20, 44).reshape(2, 12)
FULL_ATTENTION = {"qwen3_next": [3]}  # other layers are recurrent
GROUPS = {"gpt2": None, "opt": None, "gpt_neox": None, "gptj": None, "falcon": None, "bert": None, "modernbert": None,
          "olmoe": 1, "deepseek_v3": 1}  # fmt: skip
SLIDING = {"modernbert": {"local_attention": 6}}


def loaded(name, **changes):
    return zoo.loaded(name, **SLIDING.get(name, {}), **changes)


def collect(model, attention, ids=IDS):
    found = {}

    def keep(one):
        found[one.attention.layer] = one.pattern.clone(), one.visible

    run_patterns(model, attention, ids, keep)
    return found


@pytest.mark.parametrize("name", zoo.CONFIGS)
def test_patterns_are_those_of_transformers(name):
    model = loaded(name)
    attention = find_attention(model)
    layers = FULL_ATTENTION.get(name, [0, 1, 2, 3])
    assert [at.layer for at in attention] == layers
    assert {at.group for at in attention} == {GROUPS.get(name, 2)}
    with torch.inference_mode():
        expected = [value for value in model.base(IDS, output_attentions=True).attentions if value is not None]
    found = collect(model, attention)
    assert list(found) == layers
    for one, (pattern, visible) in zip(expected, found.values(), strict=True):
        torch.testing.assert_close(pattern[..., :12], one, rtol=0, atol=1e-7)
        torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 4, 12))
        # No probability of a small random model is so small that it is rounded to 0.
        assert torch.equal(visible, (one > 0).any(dim=(0, 1)))
        assert pattern.shape[-1] == (13 if name == "gpt_oss" else 12)


@pytest.mark.parametrize(
    ("name", "pairs"), [("llama", [78] * 4), ("gemma3_text", [68] * 4), ("gpt_oss", [68, 78] * 2), ("bert", [144] * 4)]
)
def test_what_a_query_can_see(name, pairs):
    """12 queries see 78 keys in all if causal, 10 fewer through a window of 8, and 144 if not causal."""
    model = loaded(name)
    assert [int(visible.sum()) for _, visible in collect(model, find_attention(model)).values()] == pairs


def test_mass_of_a_learned_sink_follows_from_its_logit():
    """A logit larger by log 2 doubles the odds of the sink against the keys."""
    model = loaded("gpt_oss")
    attention = find_attention(model)
    before = collect(model, attention)[0][0][..., -1].double()
    with torch.no_grad():
        model.model.model.layers[0].self_attn.sinks += math.log(2)
    after = collect(model, attention)[0][0][..., -1].double()
    assert before.min() > 0.01
    torch.testing.assert_close(after / (1 - after), 2 * before / (1 - before), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_rows_sum_to_one_within_their_rounding(dtype):
    model = loaded("llama", dtype=dtype)
    for pattern, _ in collect(model, find_attention(model)).values():
        assert pattern.dtype == getattr(torch, dtype)
        torch.testing.assert_close(pattern.float().sum(-1), torch.ones(2, 4, 12), rtol=0, atol=8e-3)


def test_one_layer_is_in_memory_at_a_time():
    model = loaded("llama")
    attention = find_attention(model)
    alive, most = [], []

    def receive(one):
        alive.append(weakref.ref(one.pattern))
        gc.collect()
        most.append(sum(ref() is not None for ref in alive))

    run_patterns(model, attention, IDS, receive)
    gc.collect()
    assert most == [1, 1, 1, 1]
    assert [ref() for ref in alive] == [None] * 4


def test_hooks_are_gone_afterwards():
    model = loaded("llama")
    collect(model, find_attention(model))
    assert not any(module._forward_hooks for module in model.model.modules())


def test_a_recurrent_model_has_none():
    model = zoo.loaded("qwen3_next", layer_types=["linear_attention"] * 4)
    assert find_attention(model) == []


def test_sdpa_is_refused():
    model = loaded("llama")
    model = type(model)(model.model, model.device, "sdpa", True, True)
    with pytest.raises(InputError, match=r"attention: found 'sdpa', which leaves no patterns, expected 'eager'"):
        find_attention(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p * 0.9, "rows of the pattern sum to 0.9 to 0.9, expected 1"),
        (lambda p: p * 1.1, "rows of the pattern sum to 1.1 to 1.1, expected 1"),
        (lambda p: p.flip(-1), "to a key that it cannot see, expected 0"),
        (lambda p: p - 1, "values below 0"),
        (lambda p: p * float("nan"), "not finite"),
    ],
)
def test_what_is_no_pattern_is_refused(change, message):
    model = loaded("llama")
    module = model.model.model.layers[1].self_attn
    module.register_forward_hook(lambda module, args, output: (output[0], change(output[1])))
    with pytest.raises(InputError, match=r"layer 1 \(model.layers.1.self_attn\)") as error:
        find_attention(model)
    assert message in str(error.value)


def test_a_layer_that_did_not_run_is_refused():
    model = loaded("llama")
    attention = find_attention(model)
    strange = attention[0].__class__(9, "nowhere", torch.nn.Linear(1, 1), 1, 4, 2, False)
    with pytest.raises(InputError, match="layer 9 did not run"):
        run_patterns(model, [*attention, strange], IDS, lambda one: None)
