"""Attention patterns: those of plain transformers' own `output_attentions`, one layer in memory at a time."""

import gc
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.llama import modeling_llama

import zoo
from outlier_features.attention.attention_patterns import Attention, find_attention, run_patterns
from outlier_features.attention.sink_counts import alpha
from outlier_features.errors import InputError
from outlier_features.model.models import LoadedModel

IDS = torch.arange(20, 32)
_GPT2 = dict(zoo.CONFIGS["gpt2"], pad_token_id=0)
_DEBERTA = dict(zoo.CONFIGS["bert"], relative_attention=True, pos_att_type=["c2p", "p2c"], pad_token_id=0)
# Softmax that no module returns, boolean masks either way round, masks of a module's own, groups of several kinds.
MORE = {
    "openai-gpt": _GPT2,
    "deberta": dict(_DEBERTA, position_biased_input=False),
    "deberta-v2": dict(_DEBERTA, position_buckets=16, share_att_key=True),
    "mpt": {"vocab_size": 128, "d_model": 64, "n_layers": 4, "n_heads": 4, "max_seq_len": 256},
    "bloom": dict(_GPT2, hidden_size=64),
    "gpt_neo": {"vocab_size": 128, "hidden_size": 64, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 256,
                "attention_types": [[["global", "local"], 2]], "window_size": 5, "bos_token_id": 0, "eos_token_id": 1},
    "ctrl": dict(_GPT2, dff=96),
    "gpt_bigcode": _GPT2,
    "mistral": dict(zoo.CONFIGS["llama"], sliding_window=5, head_dim=16),
    "xglm": {"vocab_size": 128, "d_model": 64, "num_layers": 4, "attention_heads": 4, "ffn_dim": 96},
    "mpnet": zoo.CONFIGS["bert"],
    "distilbert": {"vocab_size": 128, "dim": 64, "n_layers": 4, "n_heads": 4, "hidden_dim": 96},
    "diffllama": dict(zoo.CONFIGS["llama"], head_dim=16),
}  # fmt: skip
ENCODERS = {"deberta", "deberta-v2", "mpnet", "distilbert"}
FULL_ATTENTION = {"qwen3_next": [3]}  # other layers are recurrent
KV_HEADS = dict.fromkeys(
    ("gpt2", "opt", "gpt_neox", "gptj", "bert", "modernbert", "olmoe", "deepseek_v3", "openai-gpt", "deberta",
     "deberta-v2", "mpt", "bloom", "gpt_neo", "ctrl", "xglm", "mpnet", "distilbert", "diffllama"),
) | {"falcon": (0, 0, 0, 0), "gpt_bigcode": (0, 0, 0, 0)}  # fmt: skip
SLIDING = {"modernbert": {"local_attention": 6}}


def loaded(name, dtype="float32", **changes):
    if name in zoo.CONFIGS:
        return zoo.loaded(name, dtype, **SLIDING.get(name, {}), **changes)
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**MORE[name], **changes})
    config.use_cache = False
    causal = name not in ENCODERS
    model = (AutoModelForCausalLM if causal else AutoModel).from_config(config, attn_implementation="eager").eval()
    return LoadedModel.of(model, torch.device("cpu"), "eager")


def collect(model, attention, ids=IDS):
    found = {}

    def keep(one):
        found[one.attention.layer] = one.pattern.clone(), one.visible

    run_patterns(model, attention, ids, keep)
    return found


def attentions(model, ids=IDS):
    with torch.inference_mode():
        output = model.base(ids[None], output_attentions=True)
    return [value[0] for value in output.attentions if value is not None]


@pytest.mark.parametrize("name", [*zoo.CONFIGS, *MORE])
def test_patterns_are_those_of_transformers(name):
    model = loaded(name)
    attention = find_attention(model)
    layers = FULL_ATTENTION.get(name, [0, 1, 2, 3])
    assert [at.layer for at in attention] == layers
    assert {at.kv_heads for at in attention} == {KV_HEADS.get(name, (0, 0, 1, 1))}
    found = collect(model, attention)
    assert list(found) == layers
    for one, (pattern, visible) in zip(attentions(model), found.values(), strict=True):
        assert torch.equal(pattern[..., :12], one)
        torch.testing.assert_close(pattern.sum(-1), torch.ones(4, 12))
        # No probability of a small random model is so small that it is rounded to 0.
        assert torch.equal(visible, (one > 0).any(dim=0))
        assert pattern.shape[-1] == (13 if name == "gpt_oss" else 12)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [("llama", [78] * 4), ("gemma3_text", [68] * 4), ("gpt_oss", [68, 78] * 2), ("bert", [144] * 4), ("mpt", [78] * 4),
     ("mistral", [50] * 4), ("gpt_neo", [78, 50] * 2), ("openai-gpt", [78] * 4), ("deberta-v2", [144] * 4)],
)  # fmt: skip
def test_what_a_query_can_see(name, pairs):
    """12 queries see 78 keys in all if causal, 10 or 28 fewer through a window of 8 or 5, and 144 if not causal."""
    model = loaded(name)
    assert [int(visible.sum()) for _, visible in collect(model, find_attention(model)).values()] == pairs


def silent(model, names):
    """The model with queries of 0: every visible key has the same score but for what is added to it."""
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if any(part in name for part in names):
                parameter[: 64 if "Wqkv" in name else None] = 0
    return model


SLOPES = [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]  # ALiBi's of 4 heads


@pytest.mark.parametrize(
    ("name", "query", "score", "sees"),
    [
        ("mpt", "Wqkv", lambda head, q, k: SLOPES[head] * (k - q), lambda q, k: k <= q),
        ("mistral", "q_proj", lambda head, q, k: 0, lambda q, k: q - 5 < k <= q),
        ("gpt_oss", "q_proj", lambda head, q, k: 0, lambda q, k: q - 8 < k <= q),
        ("bert", "query", lambda head, q, k: 0, lambda q, k: True),
    ],
)
def test_alpha_is_what_the_definition_gives_by_hand(name, query, score, sees):
    """Layer 0: the weight of a key is exp(score) over the sum of those that the query sees, and of the sink's logit."""
    model = silent(loaded(name), [query])
    logits = model.base.layers[0].self_attn.sinks.tolist() if name == "gpt_oss" else [-math.inf] * 4
    pattern, visible = collect(model, find_attention(model))[0]
    found = alpha(pattern.numpy(), visible.numpy())
    for head in range(4):
        weights = {}
        for q in range(12):
            exps = {k: math.exp(score(head, q, k)) for k in range(12) if sees(q, k)} | {12: math.exp(logits[head])}
            weights |= {(q, k): value / sum(exps.values()) for k, value in exps.items()}
        for k in range(found.shape[1]):
            queries = [weights[q, k] for q in range(12) if (q, k) in weights]
            assert found[head, k] == pytest.approx(sum(queries) / len(queries), rel=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_which_kv_head_a_head_reads_is_seen_in_the_values(interleaved, monkeypatch):
    """Pattern times the values of the KV head that is named is what the output projection reads."""
    if interleaved:  # head h reads KV head h % 2
        monkeypatch.setattr(modeling_llama, "repeat_kv", lambda kv, group: kv.repeat(1, group, 1, 1))
    model = loaded("llama")
    attention = find_attention(model)
    assert {at.kv_heads for at in attention} == {(0, 1, 0, 1) if interleaved else (0, 0, 1, 1)}
    seen = {}
    module = model.base.layers[2].self_attn
    module.v_proj.register_forward_hook(lambda module, args, output: seen.update(values=output[0]))
    module.o_proj.register_forward_pre_hook(lambda module, args: seen.update(heads=args[0][0]))
    pattern = collect(model, attention)[2][0]
    values = seen["values"].reshape(12, 2, 16)[:, list(attention[2].kv_heads)]
    torch.testing.assert_close(torch.einsum("hqk,khd->qhd", pattern, values).reshape(12, 64), seen["heads"])


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
@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_16_bit_patterns_are_the_weights_that_multiply_the_values(name, dtype):
    model = loaded(name, dtype=dtype)
    for expected, (pattern, _) in zip(attentions(model), collect(model, find_attention(model)).values(), strict=True):
        assert pattern.dtype == getattr(torch, dtype) and torch.equal(pattern[..., :12], expected)
        torch.testing.assert_close(pattern.float().sum(-1), torch.ones(4, 12), rtol=0, atol=8e-3)


def test_a_block_that_stands_for_several_layers_has_a_pattern_for_each_call():
    """ALBERT runs one block four times."""
    model = AutoModel.from_config(
        AutoConfig.for_model("albert", **zoo.CONFIGS["bert"], embedding_size=64), attn_implementation="eager"
    ).eval()
    shared = LoadedModel.of(model, torch.device("cpu"), "eager")
    found = collect(shared, find_attention(shared))
    assert list(found) == [0, 1, 2, 3]
    for expected, (pattern, _) in zip(attentions(shared), found.values(), strict=True):
        assert torch.equal(pattern, expected)
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("cross_first", [False, True])
def test_cross_attention_is_no_self_attention(cross_first):
    """The decoder of an encoder-decoder model, whose encoder reads as many tokens as it does."""
    sizes = {f"{side}_{what}": size for side in ("encoder", "decoder")
             for what, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 96))}  # fmt: skip
    config = AutoConfig.for_model(
        "bart", vocab_size=128, d_model=64, max_position_embeddings=64, use_cache=False, **sizes
    )
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    decoder = LoadedModel.of(model, torch.device("cpu"), "eager", "decoder")
    with torch.inference_mode():
        expected = model(IDS[None, 1:], decoder_input_ids=IDS[None], output_attentions=True)

    def across(layer, args, kwargs):
        layer.encoder_attn(args[0], key_value_states=expected.encoder_last_hidden_state.clone()[:, : args[0].shape[1]])

    if cross_first:
        for layer in model.decoder.layers:
            layer.register_forward_pre_hook(across, with_kwargs=True)
    attention = find_attention(decoder)
    assert [at.path for at in attention] == ["decoder.layers.0.self_attn", "decoder.layers.1.self_attn"]
    for own, (pattern, _) in zip(expected.decoder_attentions, collect(decoder, attention).values(), strict=True):
        assert torch.equal(pattern, own[0])


def test_a_softmax_over_as_many_experts_as_positions_is_no_pattern():
    """Routers of 12 experts give a softmax (T, 12) of 12 tokens, in a model whose attention is linear."""
    model = zoo.loaded("qwen3_next", layer_types=["linear_attention"] * 4, num_experts=11)
    assert find_attention(model) == []
    mixed = zoo.loaded("qwen3_next", num_experts=12)
    assert list(collect(mixed, find_attention(mixed))) == [3]


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
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def test_a_recurrent_model_has_none():
    model = zoo.loaded("qwen3_next", layer_types=["linear_attention"] * 4)
    assert find_attention(model) == []


def test_sdpa_is_refused():
    model = loaded("llama")
    model = replace(model, attention="sdpa")
    with pytest.raises(InputError, match=r"attention: found 'sdpa', which leaves no patterns, expected 'eager'"):
        find_attention(model)


def test_weights_that_are_changed_after_the_softmax_are_no_pattern(monkeypatch):
    """What multiplies the values must be what a softmax gave: here every row sums to 0.9."""
    forward = modeling_llama.nn.functional.dropout
    monkeypatch.setattr(modeling_llama.nn.functional, "dropout", lambda *args, **more: 0.9 * forward(*args, **more))
    assert find_attention(loaded("llama")) == []


def test_weights_that_are_not_finite_are_refused():
    model = loaded("llama", dtype="float16")
    attention = find_attention(model)
    with torch.no_grad():
        model.base.layers[1].self_attn.q_proj.weight.fill_(6e4)
    with pytest.raises(InputError, match=r"weights that are not finite in layer 1 \(model.layers.1.self_attn\)"):
        collect(model, attention)


def test_a_layer_that_did_not_run_is_refused():
    model = loaded("llama")
    strange = Attention(9, torch.nn.Linear(1, 1), 0, "nowhere", 4, None, False)
    with pytest.raises(InputError, match=r"layer 9 \(nowhere\) gave no attention pattern"):
        run_patterns(model, [*find_attention(model), strange], IDS, lambda one: None)


def test_alpha_counts_only_queries_that_see_the_key_through_a_window():
    model = loaded("mistral")
    pattern, visible = collect(model, find_attention(model))[3]
    by_hand = [np.mean([float(pattern[1, q, k]) for q in range(k, min(k + 5, 12))]) for k in range(12)]
    np.testing.assert_allclose(alpha(pattern.numpy(), visible.numpy())[1], by_hand, rtol=1e-6)
