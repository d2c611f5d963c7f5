"""Sites are the tensors that hooks set by hand see, in types of many shapes.

The table says where each tensor is by the type's own code. Where blocks differ, a place holds for those that have its
module, and what stands before the `?`.
"""

import pytest
import torch
from torch import nn

from outlier_features.model.models import load_model
from outlier_features.model.sites import find_sites, hooked
from tiny_types import VOCABULARY, alone, build, save

STREAM = {"resid_pre": "in", "resid_post": "out"}
LLAMA = STREAM | {
    "resid_mid": "post_attention_layernorm in", "attn_norm": "self_attn? input_layernorm out",
    "mlp_norm": "post_attention_layernorm out", "attn_heads": "self_attn.o_proj in", "attn_out": "self_attn out",
    "mlp_out": "mlp out", "mlp_pre": "mlp.gate_proj out", "mlp_act": "mlp.down_proj in",
    "mlp_down": "mlp.down_proj out",
}  # fmt: skip
NEURONS = {"mlp_pre", "mlp_act", "mlp_down"}
ROUTED = {site: place for site, place in LLAMA.items() if site not in NEURONS}
GEMMA = LLAMA | {
    "resid_mid": "pre_feedforward_layernorm in", "mlp_norm": "pre_feedforward_layernorm out",
    "attn_out": "post_attention_layernorm out", "mlp_out": "post_feedforward_layernorm out",
}  # fmt: skip
# Norms after the sublayers alone.
OLMO2 = {site: place for site, place in GEMMA.items() if site not in ("attn_norm", "mlp_norm")} | {
    "resid_mid": "mlp in"
}
COHERE = {site: place for site, place in LLAMA.items() if site != "resid_mid"} | {"mlp_norm": "input_layernorm out"}
PLAIN_MLP = {"mlp_pre": "mlp.up_proj out"}
LINEAR_ATTENTION = {"mixer_norm": "linear_attn? input_layernorm out", "mixer_out": "linear_attn out"}
BERT = STREAM | {
    "resid_mid": "attention out", "mlp_norm": "intermediate in", "attn_heads": "attention.output.dense in",
    "attn_out": "attention.output.dense out", "mlp_out": "output.dense out", "mlp_pre": "intermediate.dense out",
    "mlp_act": "intermediate out", "mlp_down": "output.dense out",
}  # fmt: skip
GPT2 = STREAM | {
    "resid_mid": "ln_2 in", "attn_norm": "ln_1 out", "mlp_norm": "ln_2 out", "attn_heads": "attn.c_proj in",
    "attn_out": "attn out", "mlp_out": "mlp out", "mlp_pre": "mlp.c_fc out", "mlp_act": "mlp.c_proj in",
    "mlp_down": "mlp.c_proj out",
}  # fmt: skip
GPTJ = {site: place for site, place in GPT2.items() if site != "resid_mid"} | {
    "mlp_norm": "ln_1 out", "attn_heads": "attn.out_proj in", "mlp_pre": "mlp.fc_in out", "mlp_act": "mlp.fc_out in",
    "mlp_down": "mlp.fc_out out",
}  # fmt: skip
BLOOM = STREAM | {
    "resid_mid": "post_attention_layernorm in", "attn_norm": "input_layernorm out",
    "mlp_norm": "post_attention_layernorm out", "attn_heads": "self_attention.dense in",
    "mlp_pre": "mlp.dense_h_to_4h out", "mlp_act": "mlp.dense_4h_to_h in", "mlp_down": "mlp.dense_4h_to_h out",
    "attn_out": "self_attention.dense out", "mlp_out": "mlp.dense_4h_to_h out",
}  # fmt: skip
MAMBA = STREAM | {"mixer_norm": "norm out", "mixer_out": "mixer out"}
BY_HAND = {
    "arcee": ("model.layers", LLAMA | PLAIN_MLP),
    "bamba": (
        "model.layers",
        LLAMA
        | {"resid_mid": "pre_ff_layernorm in", "mlp_norm": "pre_ff_layernorm out"}
        | {"mlp_out": "feed_forward out", "mlp_pre": "feed_forward.gate_proj out"}
        | {"mlp_act": "feed_forward.down_proj in", "mlp_down": "feed_forward.down_proj out"}
        | {"mixer_norm": "mamba? input_layernorm out", "mixer_out": "mamba out"},
    ),
    "bert": ("encoder.layer", BERT),
    "bloom": ("transformer.h", BLOOM),
    "cohere2": ("model.layers", COHERE),
    "deepseek_v3": (
        "model.layers",
        ROUTED | {site: f"mlp.down_proj? {place}" for site, place in LLAMA.items() if site in NEURONS},
    ),
    "electra": ("encoder.layer", BERT),
    "exaone4": (
        "model.layers",
        OLMO2 | {"attn_out": "post_attention_layernorm out", "mlp_out": "post_feedforward_layernorm out"},
    ),
    "falcon_mamba": ("backbone.layers", MAMBA),
    "falcon": (
        "transformer.h",
        {site: place for site, place in BLOOM.items() if site != "resid_mid"} | {"mlp_norm": "input_layernorm out"},
    ),
    "falcon_h1": (
        "model.layers",
        LLAMA
        | {"attn_norm": "input_layernorm out", "mixer_norm": "input_layernorm out"}
        | {"resid_mid": "pre_ff_layernorm in", "mlp_norm": "pre_ff_layernorm out", "mlp_out": "feed_forward out"}
        | {"mlp_pre": "feed_forward.gate_proj out", "mlp_act": "feed_forward.down_proj in"}
        | {"mlp_down": "feed_forward.down_proj out", "mixer_out": "mamba out", "attn_out": "self_attn out"},
    ),
    "gemma2": ("model.layers", GEMMA),
    "gemma3": ("model.language_model.layers", GEMMA),
    "glm4": (
        "model.layers",
        GEMMA
        | {"resid_mid": "post_attention_layernorm in", "mlp_norm": "post_attention_layernorm out"}
        | {"attn_out": "post_self_attn_layernorm out", "mlp_out": "post_mlp_layernorm out"}
        | {"mlp_pre": "mlp.activation_fn in"},
    ),
    "gpt2": ("transformer.h", GPT2),
    "gptj": ("transformer.h", GPTJ),
    "gpt_oss": ("model.layers", ROUTED),
    "internvl": ("model.language_model.layers", LLAMA),
    "lfm2": (
        "model.layers",
        STREAM
        | {"resid_mid": "ffn_norm in", "mlp_norm": "ffn_norm out", "attn_norm": "self_attn? operator_norm out"}
        | {"mixer_norm": "conv? operator_norm out", "mixer_out": "conv out", "attn_heads": "self_attn.out_proj in"}
        | {"attn_out": "self_attn out", "mlp_out": "feed_forward out", "mlp_act": "feed_forward.w2 in"}
        | {"mlp_down": "feed_forward.w2 out"},  # no module tells the gate of the MLP from the rest
    ),
    "llama": ("model.layers", LLAMA),
    "llava": ("model.language_model.layers", LLAMA),
    "mamba": ("backbone.layers", MAMBA),
    "mistral3": ("model.language_model.layers", LLAMA),
    "mixtral": ("model.layers", ROUTED),
    "nemotron": ("model.layers", LLAMA | PLAIN_MLP),
    "modernbert": (
        "model.layers",
        STREAM
        | {"resid_mid": "mlp_norm in", "mlp_norm": "mlp_norm out", "attn_norm": "attn_norm.weight? attn_norm out"}
        | {"attn_heads": "attn.Wo in", "attn_out": "attn out", "mlp_out": "mlp out", "mlp_pre": "mlp.act in"}
        | {"mlp_act": "mlp.Wo in", "mlp_down": "mlp.Wo out"},
    ),
    "mpt": (
        "transformer.blocks",
        STREAM
        | {"resid_mid": "norm_2 in", "attn_norm": "norm_1 out", "mlp_norm": "norm_2 out", "attn_out": "attn out"}
        | {"attn_heads": "attn.out_proj in", "mlp_pre": "ffn.up_proj out", "mlp_act": "ffn.down_proj in"}
        | {"mlp_down": "ffn.down_proj out", "mlp_out": "ffn.down_proj out"},
    ),
    "nemotron_h": (  # blocks of one sublayer
        "model.layers",
        STREAM
        | {"mixer_norm": "mixer.conv1d? norm out", "mixer_out": "mixer.conv1d? mixer out"}
        | {"attn_norm": "mixer.q_proj? norm out", "attn_out": "mixer.q_proj? mixer out",
        "attn_heads": "mixer.o_proj in"}
        | {"mlp_norm": "mixer.up_proj? norm out|mixer.gate? norm out"}
        | {"mlp_out": "mixer.up_proj? mixer out|mixer.gate? mixer out", "mlp_pre": "mixer.up_proj out"}
        | {"mlp_act": "mixer.down_proj in", "mlp_down": "mixer.down_proj out"},
    ),
    "olmo2": ("model.layers", OLMO2),
    "qwen3_5": ("model.language_model.layers", LLAMA | LINEAR_ATTENTION),
    "qwen3_vl": ("model.language_model.layers", LLAMA),
    "roberta": ("encoder.layer", BERT),
    "starcoder2": (
        "model.layers",
        LLAMA | {"mlp_pre": "mlp.c_fc out", "mlp_act": "mlp.c_proj in", "mlp_down": "mlp.c_proj out"},
    ),
}  # fmt: skip


def seen_by_hand(model, ids, path, places):
    """The tensors (B, T, H) by block and site, from hooks on the modules that `places` names."""
    seen, handles = {}, []
    for index, block in enumerate(model.get_submodule(path)):
        inside = dict(block.named_modules()) | dict(block.named_parameters())
        for site, place in ((site, place) for site, several in places.items() for place in several.split("|")):
            condition, _, where = place.rpartition("? ")
            name, _, side = where.rpartition(" ")
            if name not in inside or condition not in inside:
                continue

            def read(module, args, kwargs, key=(index, site)):
                seen[key] = (args[0] if args else kwargs["hidden_states"]).clone()

            def returned(module, args, output, key=(index, site)):
                seen[key] = (output if torch.is_tensor(output) else output[0]).clone()

            module: nn.Module = inside[name]
            if side == "in":
                handles.append(module.register_forward_pre_hook(read, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(returned))
    alone(model, ids)
    for handle in handles:
        handle.remove()
    return {key: value.reshape(*ids.shape, -1) for key, value in seen.items()}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_site_is_the_tensor_that_hooks_by_hand_see(name, tmp_path):
    save(name, tmp_path)
    loaded = load_model(tmp_path, dtype="float32", device="cpu", attention="eager", trust_remote_code=False)
    path, places = BY_HAND[name]
    ids = torch.randint(3, VOCABULARY - 40, (2, 10), generator=torch.Generator().manual_seed(1))
    plain = loaded.model if path in dict(loaded.model.named_modules()) else build(name)
    expected = seen_by_hand(plain, ids, path, places)
    sites = {
        (index, site): where for index, block in enumerate(find_sites(loaded)) for site, where in block.sites.items()
    }
    found = {}

    def receive(key, value):
        found[key] = value.reshape(*ids.shape, -1).clone()

    with hooked(sites.items(), receive), torch.no_grad():
        loaded.base(ids)
    assert found.keys() == expected.keys()
    for key, where in sites.items():
        torch.testing.assert_close(found[key], expected[key])
        assert found[key].shape[-1] == where.width
