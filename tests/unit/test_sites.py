"""Which sites each architecture has, and that they are the tensors that hooks set by hand see."""

import pytest
import torch
from torch import nn

import zoo
from outlier_features.errors import InputError
from outlier_features.model.bases import SITES
from outlier_features.model.models import LoadedModel, probe_ids
from outlier_features.model.sites import find_sites, hooked

NEURONS = {"mlp_pre", "mlp_act", "mlp_down"}
MIXER = {"mixer_norm", "mixer_out"}
EVERY = set(SITES) - MIXER  # of blocks whose one mixer is attention
ATTENTION = {"attn_norm", "attn_heads", "attn_out"}
MLP = {"mlp_norm", "mlp_out", "mlp_pre", "mlp_act", "mlp_down"}
ROUTED = EVERY - NEURONS
PRESENT = {
    "gpt2": [EVERY] * 4,
    "llama": [EVERY] * 4,
    "qwen3": [EVERY] * 4,
    "olmoe": [ROUTED] * 4,
    "gpt_oss": [ROUTED] * 4,
    "qwen3_moe": [ROUTED] * 4,
    "mixtral": [ROUTED] * 4,
    "qwen3_next": [ROUTED - ATTENTION | MIXER] * 3 + [ROUTED],
    "glm4_moe": [EVERY] + [ROUTED] * 3,
    "gemma3_text": [EVERY] * 4,
    "opt": [EVERY] * 4,
    "gpt_neox": [EVERY - {"resid_mid"}] * 4,
    "phi3": [EVERY] * 4,
    "deepseek_v3": [EVERY] + [ROUTED] * 3,
    "bert": [EVERY - {"attn_norm"}] * 4,
    "olmo2": [EVERY - {"attn_norm", "mlp_norm"}] * 4,
    "gemma2": [EVERY] * 4,
    "gptj": [EVERY - {"resid_mid"}] * 4,
    "falcon": [EVERY - {"resid_mid"}] * 4,
    "modernbert": [EVERY - {"attn_norm"}] + [EVERY] * 3,
    "granite": [EVERY] * 4,
    "qwen2_moe": [ROUTED] * 4,
    "flex_olmo": [ROUTED - {"attn_norm", "mlp_norm"}] * 4,
    "granitemoeshared": [EVERY - MLP - {"resid_mid"}] * 4,
    "llama4_text": [ROUTED] * 4,
}

# Where each tensor is by the architecture's own code: module within the block and whether its input or output.
LLAMA = {
    "resid_pre": "in", "resid_mid": "post_attention_layernorm in", "resid_post": "out",
    "attn_norm": "input_layernorm out", "mlp_norm": "post_attention_layernorm out",
    "attn_heads": "self_attn.o_proj in", "attn_out": "self_attn out", "mlp_out": "mlp out",
    "mlp_pre": "mlp.gate_proj out", "mlp_act": "mlp.down_proj in", "mlp_down": "mlp.down_proj out",
}  # fmt: skip
GEMMA = LLAMA | {
    "resid_mid": "pre_feedforward_layernorm in", "mlp_norm": "pre_feedforward_layernorm out",
    "attn_out": "post_attention_layernorm out", "mlp_out": "post_feedforward_layernorm out",
}  # fmt: skip
BY_HAND = {
    "llama": ("model.layers", LLAMA),
    "gemma3_text": ("model.layers", GEMMA),
    "phi3": ("model.layers", LLAMA | {"mlp_pre": "mlp.activation_fn in"}),
    "mixtral": ("model.layers", {site: place for site, place in LLAMA.items() if site not in NEURONS}),
    "olmo2": (
        "model.layers",
        {site: place for site, place in GEMMA.items() if site not in ("attn_norm", "mlp_norm")}
        | {"resid_mid": "mlp in"},
    ),
    "gpt2": (
        "transformer.h",
        {
            "resid_pre": "in", "resid_mid": "ln_2 in", "resid_post": "out", "attn_norm": "ln_1 out",
            "mlp_norm": "ln_2 out", "attn_heads": "attn.c_proj in", "attn_out": "attn out", "mlp_out": "mlp out",
            "mlp_pre": "mlp.c_fc out", "mlp_act": "mlp.c_proj in", "mlp_down": "mlp.c_proj out",
        },
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        {
            "resid_pre": "in", "resid_post": "out", "attn_norm": "input_layernorm out",
            "mlp_norm": "post_attention_layernorm out", "attn_heads": "attention.dense in", "attn_out": "attention out",
            "mlp_out": "mlp out", "mlp_pre": "mlp.dense_h_to_4h out", "mlp_act": "mlp.dense_4h_to_h in",
            "mlp_down": "mlp.dense_4h_to_h out",
        },
    ),
    "opt": (
        "model.decoder.layers",
        {
            "resid_pre": "in", "resid_mid": "final_layer_norm in", "resid_post": "out",
            "attn_norm": "self_attn_layer_norm out", "mlp_norm": "final_layer_norm out",
            "attn_heads": "self_attn.out_proj in", "attn_out": "self_attn out", "mlp_out": "fc2 out",
            "mlp_pre": "fc1 out", "mlp_act": "fc2 in", "mlp_down": "fc2 out",
        },
    ),
    "bert": (
        "encoder.layer",
        {
            "resid_pre": "in", "resid_mid": "attention out", "resid_post": "out",
            "mlp_norm": "intermediate in", "attn_heads": "attention.output.dense in",
            "attn_out": "attention.output.dense out", "mlp_out": "output.dense out",
            "mlp_pre": "intermediate.dense out", "mlp_act": "intermediate out", "mlp_down": "output.dense out",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", zoo.CONFIGS)
def test_each_architecture_has_these_sites(name):
    blocks = find_sites(zoo.loaded(name))
    assert [set(block.sites) for block in blocks] == PRESENT[name]
    for block in blocks:
        assert set(block.absent) == set(SITES) - set(block.sites)
        assert all(block.absent.values())


def seen_by_hand(model, ids, path, places):
    """The tensors (B, T, H) by block and site, from hooks on the modules that `places` names."""
    seen, handles = {}, []
    for index, block in enumerate(model.get_submodule(path)):
        for site, place in places.items():
            module_path, _, side = place.rpartition(" ")
            module = block.get_submodule(module_path)

            def read(module, args, kwargs, key=(index, site)):
                seen[key] = (args[0] if args else kwargs["hidden_states"]).clone()

            def returned(module, args, output, key=(index, site)):
                seen[key] = (output if torch.is_tensor(output) else output[0]).clone()

            if side == "in":
                handles.append(module.register_forward_pre_hook(read, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(returned))
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return {key: value.reshape(*ids.shape, -1) for key, value in seen.items()}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_site_is_the_tensor_that_hooks_by_hand_see(name):
    loaded = zoo.loaded(name)
    blocks = find_sites(loaded)
    ids = torch.randint(3, zoo.VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(1))
    expected = seen_by_hand(loaded.model, ids, *BY_HAND[name])
    found = {}

    def receive(key, value):
        found[key] = value.reshape(*ids.shape, -1).clone()

    sites = {(index, site): where for index, block in enumerate(blocks) for site, where in block.sites.items()}
    with hooked(sites.items(), receive), torch.no_grad():
        loaded.base(ids)
    assert found.keys() == expected.keys()
    for key, where in sites.items():
        assert torch.equal(found[key], expected[key]), key
        assert found[key].shape[-1] == where.width


def test_norms_carry_their_gain():
    loaded = zoo.loaded("llama")
    seen = []
    with hooked([("", find_sites(loaded)[0].sites["attn_norm"])], lambda _, value: seen.append(value.clone())):
        loaded.model(probe_ids(loaded.model))
    rms = seen[0].square().mean(dim=(0, 1)).sqrt()
    gain = loaded.model.model.layers[0].input_layernorm.weight
    assert torch.corrcoef(torch.stack([rms, gain.abs()]))[0, 1] > 0.3


def test_absent_sites_say_why():
    neox, bert, olmoe = (find_sites(zoo.loaded(name))[0].absent for name in ("gpt_neox", "bert", "olmoe"))
    no_mixer = dict.fromkeys(MIXER, "no part of the block mixes tokens in another way than by softmax attention")
    assert neox == {"resid_mid": "attention and MLP are parallel"} | no_mixer
    assert bert == {"attn_norm": "no norm of the block feeds attention"} | no_mixer
    assert olmoe == dict.fromkeys(NEURONS, "the MLP routes tokens to experts") | no_mixer


def test_sequential_gpt_neox_has_a_middle():
    blocks = find_sites(zoo.loaded("gpt_neox", use_parallel_residual=False))
    assert all("resid_mid" in block.sites for block in blocks)


def test_lists_that_do_not_run_are_not_the_blocks():
    loaded = zoo.loaded("llama")
    loaded.model.model.another = nn.ModuleList(nn.Linear(500, 500) for _ in range(zoo.BLOCKS))
    assert [block.path for block in find_sites(loaded)] == [f"model.layers.{index}" for index in range(zoo.BLOCKS)]


def test_a_model_without_blocks_is_refused():
    model = zoo.build("llama")
    second = model.model.layers[1]
    second.register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))  # what it reads, nobody returned
    with pytest.raises(InputError, match="found no list of modules of LlamaForCausalLM"):
        LoadedModel.of(model, torch.device("cpu"), "eager")


def test_activations_that_are_not_finite_are_refused():
    loaded = zoo.loaded("llama")
    with torch.no_grad():
        loaded.model.model.layers[2].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(InputError, match=r"not finite in model\.layers\.2"):
        find_sites(loaded)
