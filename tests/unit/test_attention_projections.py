"""Patterns from Q and K weights, against those that tiny models give themselves."""

import numpy as np
import pytest
import torch

import zoo
from outlier_features.attention.attention_projections import Projections, kv_heads_of
from outlier_features.errors import InputError

IDS = torch.arange(20, 44).reshape(2, 12)


def inputs_and_patterns(model, norm, attention):
    """What the projections of layer 2 read, and the layer's own pattern."""
    seen = {}
    norm.register_forward_hook(lambda module, args, output: seen.update(x=output))
    with torch.inference_mode():
        output = model.base_model(IDS, output_attentions=True)
    return seen["x"].numpy(), output.attentions[2].numpy()


def array(parameter):
    return parameter.detach().numpy()


def check(projections, x, expected):
    for n in range(len(x)):
        np.testing.assert_allclose(projections.pattern(x[n]), expected[n], atol=2e-6)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_llama_with_grouped_queries_and_a_rotary_embedding(kv_heads, bias):
    model = zoo.build("llama", num_key_value_heads=kv_heads, attention_bias=bias, rope_theta=500.0)
    layer = model.model.layers[2]
    x, expected = inputs_and_patterns(model, layer.input_layernorm, layer.self_attn)
    q, k = layer.self_attn.q_proj, layer.self_attn.k_proj
    projections = Projections(
        q=array(q.weight), k=array(k.weight), n_heads=4, n_kv_heads=kv_heads, scale=0.25, causal=True,
        head_groups="consecutive", rotary_base=model.config.rope_parameters["rope_theta"],
        q_bias=array(q.bias) if bias else None,
        k_bias=array(k.bias) if bias else None,
    )  # fmt: skip
    check(projections, x, expected)
    for wrong in ({"rotary_base": 10000.0}, {"rotary_base": None}, {"scale": 0.5}, {"causal": False}):
        other = Projections(**{**projections.__dict__, **wrong})
        assert np.abs(other.pattern(x[0]) - expected[0]).max() > 1e-4


@pytest.mark.parametrize(("groups", "read"), [("consecutive", (0, 0, 0, 1, 1, 1)), ("interleaved", (0, 1, 0, 1, 0, 1))])
def test_a_head_reads_its_kv_head_and_the_sink_takes_its_share(groups, read):
    """Against one head at a time, each with the keys of the KV head that it reads."""
    random = np.random.default_rng(0)
    x, q, k, sinks = (random.normal(size=size) for size in [(7, 10), (24, 10), (8, 10), (6,)])
    found = Projections(q, k, 6, 2, 0.5, True, None, head_groups=groups, sinks=sinks)
    assert found.kv_heads == read
    for head, kv in enumerate(read):
        scores = 0.5 * (x @ q[4 * head : 4 * head + 4].T) @ (x @ k[4 * kv : 4 * kv + 4].T).T
        for query in range(7):
            odds = np.exp([*scores[query, : query + 1], sinks[head]])
            line = np.zeros(8)
            line[[*range(query + 1), 7]] = odds / odds.sum()
            np.testing.assert_allclose(found.pattern(x)[head, query], line, rtol=1e-5)


def test_one_kv_head_is_read_by_all():
    assert kv_heads_of(4, 1, None) == (0, 0, 0, 0) and kv_heads_of(4, 4, None) is None


def test_norms_of_queries_and_keys():
    model = zoo.build("qwen3")
    layer = model.model.layers[2]
    x, expected = inputs_and_patterns(model, layer.input_layernorm, layer.self_attn)
    attention = layer.self_attn
    projections = Projections(
        q=array(attention.q_proj.weight), k=array(attention.k_proj.weight), n_heads=4, n_kv_heads=2, scale=0.25,
        causal=True, head_groups="consecutive", rotary_base=model.config.rope_parameters["rope_theta"],
        q_norm=array(attention.q_norm.weight),
        k_norm=array(attention.k_norm.weight), norm_eps=model.config.rms_norm_eps,
    )  # fmt: skip
    check(projections, x, expected)


def test_an_encoder_sees_all_keys_and_rotates_nothing():
    model = zoo.build("bert")
    attention = model.encoder.layer[2].attention.self
    x, expected = inputs_and_patterns(model, model.encoder.layer[1], attention)
    projections = Projections(
        q=array(attention.query.weight), k=array(attention.key.weight), n_heads=4, n_kv_heads=4, scale=0.25,
        causal=False, rotary_base=None, q_bias=array(attention.query.bias), k_bias=array(attention.key.bias),
    )  # fmt: skip
    check(projections, x, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_heads": 3}, "4 heads and 3 KV heads"),
        ({"head_groups": None}, "4 heads and 2 KV heads, expected --head-groups"),
        ({"sinks": np.zeros(2)}, r"a learned sink of shape \[2\], expected \[4\]"),
        ({"n_heads": 8, "n_kv_heads": 8}, r"K weights of shape \[8, 6\], expected \[out, in\]"),
        ({"q": np.zeros((6, 16))}, r"Q weights of shape \[6, 16\]"),
        ({"q_bias": np.zeros(3)}, r"a Q bias of shape \[3\], expected \[16\]"),
        ({"k_bias": np.zeros(16)}, r"a K bias of shape \[16\], expected \[8\]"),
        ({"k_norm": np.zeros(8)}, r"a K norm of shape \[8\], expected \[4\]"),
        ({"n_heads": 16, "n_kv_heads": 8}, "heads of 1 dims, expected an even number"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    fit = {
        "q": np.zeros((16, 6)), "k": np.zeros((8, 6)), "n_heads": 4, "n_kv_heads": 2, "scale": 1.0, "causal": True,
        "rotary_base": 1e4, "head_groups": "consecutive",
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        Projections(**{**fit, **changes})


def test_weights_of_the_other_orientation_are_refused_where_their_shape_tells():
    fit = Projections(np.zeros((16, 16)), np.zeros((16, 6)), 4, 4, 1.0, True, None)
    with pytest.raises(InputError, match=r"found 16 dims in the projections' input.*as many dims in `in`"):
        fit.pattern(np.zeros((3, 16)))
