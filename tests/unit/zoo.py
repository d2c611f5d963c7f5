"""Tiny random models of many architectures, made from their configs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from outlier_features.model.models import LoadedModel, load_model

VOCABULARY, D_MODEL, BLOCKS, HEADS, D_MLP, EXPERTS = 128, 64, 4, 4, 96, 8

_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": D_MODEL, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS,
    "max_position_embeddings": 256,
}  # fmt: skip
_LLAMA = dict(
    _COMMON, num_key_value_heads=2, intermediate_size=D_MLP, bos_token_id=0, eos_token_id=1, pad_token_id=None,
    tie_word_embeddings=False,
)  # fmt: skip
_GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": D_MODEL, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": 256,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_GEMMA = dict(_LLAMA, head_dim=16, sliding_window=8, query_pre_attn_scalar=16)
_MOE = dict(_LLAMA, moe_intermediate_size=32, num_experts_per_tok=2)
_ONE_DENSE_BLOCK = dict(_MOE, n_routed_experts=EXPERTS, n_shared_experts=1, topk_group=1, first_k_dense_replace=1)

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "qwen3": dict(_LLAMA, head_dim=16),
    "olmoe": dict(_LLAMA, num_experts=EXPERTS, num_experts_per_tok=2, num_key_value_heads=HEADS, intermediate_size=32),
    "gpt_oss": dict(_MOE, head_dim=16, num_local_experts=EXPERTS, intermediate_size=32, sliding_window=8),
    "qwen3_moe": dict(_MOE, num_experts=EXPERTS, head_dim=16),
    "mixtral": dict(_LLAMA, num_local_experts=EXPERTS, num_experts_per_tok=2),
    "qwen3_next": dict(
        _MOE, num_experts=EXPERTS, head_dim=16, shared_expert_intermediate_size=32, linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16,
    ),
    "glm4_moe": dict(_ONE_DENSE_BLOCK, n_group=1, head_dim=16),
    "gemma3_text": _GEMMA,
    "opt": dict(
        _COMMON, ffn_dim=D_MLP, word_embed_proj_dim=D_MODEL, pad_token_id=1, bos_token_id=2, eos_token_id=2
    ),
    "gpt_neox": _LLAMA,
    "phi3": _LLAMA,
    "deepseek_v3": dict(
        _ONE_DENSE_BLOCK, num_key_value_heads=HEADS, n_group=2, q_lora_rank=24, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16,
    ),
    "bert": dict(_COMMON, intermediate_size=D_MLP),
    "olmo2": _LLAMA,
    "gemma2": _GEMMA,
    "gptj": dict(_GPT2, rotary_dim=8),
    "falcon": _COMMON,
    "modernbert": dict(_LLAMA, pad_token_id=0, bos_token_id=0, eos_token_id=1, cls_token_id=0, sep_token_id=1),
    "granite": dict(_LLAMA, residual_multiplier=0.22),
    "qwen2_moe": dict(_MOE, num_experts=EXPERTS, shared_expert_intermediate_size=32),
    "flex_olmo": dict(_MOE, num_experts=EXPERTS, intermediate_size=32),
    "granitemoeshared": dict(_LLAMA, num_local_experts=EXPERTS, shared_intermediate_size=32),
    "llama4_text": dict(_LLAMA, num_local_experts=EXPERTS, head_dim=16, intermediate_size_mlp=D_MLP),
}  # fmt: skip
ENCODERS = {"bert", "modernbert"}
EAGER_ONLY = {"gpt_oss", "gemma2"}
# Of every kind of block one: Conv1D and biases, a gated MLP, parallel parts, a dense block before latent attention and
# experts, linear attention beside attention, norms around and behind the sublayers, an encoder.
KINDS = {"gpt2", "llama", "gpt_neox", "deepseek_v3", "qwen3_next", "gemma3_text", "olmo2", "bert"}

transformers.utils.logging.set_verbosity_error()
torch.set_num_threads(1)  # tiny products only lose time to a second thread


def of_every_kind(names: Iterable[str], kinds: Iterable[str] = KINDS) -> list[Any]:
    """Architectures for a test that costs more than a tenth of a second each: `make test-all` takes all of them."""
    return [pytest.param(name, marks=[] if name in kinds else [pytest.mark.slow]) for name in names]


def build(name: str, dtype: str = "float32", **changes: Any) -> Any:
    """A model with random weights and norms whose gains differ from dimension to dimension."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**CONFIGS[name], **changes})
    model = (AutoModel if name in ENCODERS else AutoModelForCausalLM).from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model.to(getattr(torch, dtype)).eval()


def loaded(name: str, dtype: str = "float32", **changes: Any) -> LoadedModel:
    """The same as `load_model` would give it."""
    model = build(name, dtype, **changes)
    model.config.use_cache = False
    return LoadedModel.of(model, torch.device("cpu"), "eager")


def save(name: str, directory: Path, **changes: Any) -> Path:
    build(name, **changes).save_pretrained(directory)
    return directory


def load(name: str, directory: Path, dtype: str = "float32", **changes: Any) -> LoadedModel:
    """The model, saved and loaded."""
    return load_model(
        save(name, directory, **changes), dtype=dtype, device="cpu", attention="eager", trust_remote_code=False
    )
