"""A tiny random model of every type that transformers can load as a language model.

The type's own default configuration is made small by one table for all types; what one type's rules want besides stands
in `tiny_changes`. Blocks are picked from the default model's, one of every kind that it has.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tiny_changes import CHANGES, NEEDS, PACKAGES

transformers.utils.logging.set_verbosity_error()

_MAPPINGS = {
    "image-text": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
# Of a type in several mappings the first counts: so most checkpoints of it are published.
TYPES = {name: kind for kind, names in reversed(_MAPPINGS.items()) for name in names} | {"reformer": "causal"}

# No two sizes that could be taken for one another are equal, where a type lets them differ.
VOCABULARY, D_MODEL, BLOCKS, HEADS, KV_HEADS, HEAD_DIM, D_MLP, D_EXPERT, EXPERTS = 320, 64, 4, 4, 2, 24, 112, 40, 8
ENCODER_BLOCKS = 3  # of an encoder-decoder; its decoder has BLOCKS
PAD, BOS, EOS, MASK = 0, 1, 2, 3  # ids from 4 to 259 are free for bytes; the special tokens of images are the last ones

_TEXT: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim", "out_hidden_size"), D_MODEL),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "layers"), BLOCKS),
    **dict.fromkeys(("num_decoder_layers", "num_blocks"), BLOCKS),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers"), ENCODER_BLOCKS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("encoder_attention_heads", "swa_num_attention_heads", "attention_heads"), HEADS),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), KV_HEADS),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "decoder_ffn_dim", "hidden_dim"), D_MLP),
    **dict.fromkeys(("d_inner", "encoder_ffn_dim", "intermediate_size_mlp", "dense_intermediate_size"), D_MLP),
    "ffn_hidden_size": D_MLP,
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "v_head_dim", "swa_head_dim", "global_head_dim"), HEAD_DIM),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"), 256),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), D_EXPERT),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), D_EXPERT),
    **dict.fromkeys(("shared_intermediate_size", "moe_shared_intermediate_size"), D_EXPERT),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "q_lora_rank": 28, "kv_lora_rank": 20, "rotary_dim": 8,
    "n_group": 2, "topk_group": 1, "num_expert_group": 2, "embedding_size": 48, "query_pre_attn_scalar": 16,
    "index_topk": 8, "index_head_dim": 16, "index_n_heads": 2, "hidden_size_per_layer_input": 12,
    "linear_num_heads": 4, "linear_head_dim": 12, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 12, "linear_value_head_dim": 20,
    "sliding_window": 8, "sliding_window_size": 8, "window_size": 8, "attention_window": 8, "local_attention": 8,
    "pad_token_id": PAD, "bos_token_id": BOS, "cls_token_id": BOS, "decoder_start_token_id": BOS,
    "eos_token_id": EOS, "sep_token_id": EOS, "mask_token_id": MASK, "eod_token_id": EOS,
}  # fmt: skip
# What embeds images or sound is narrower, flatter and thinner than the text's blocks.
_OTHER: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "width", "projection_dim", "n_embd", "hidden_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "depth", "n_layers", "num_layers", "layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_heads", "heads", "encoder_attention_heads"), 2),
    **dict.fromkeys(("num_key_value_heads",), 2),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "ffn_dim"), 48),
    **dict.fromkeys(("out_hidden_size", "text_hidden_size", "output_dim", "vision_output_dim", "output_size"), D_MODEL),
    "head_dim": 16, "image_size": 32, "patch_size": 8, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
    "pad_token_id": PAD, "blank_token_id": PAD,
}  # fmt: skip
_IMAGE_TOKENS = 280  # of the outermost configuration, one id a key


def config_of(name: str) -> PreTrainedConfig:
    """The configuration of the tiny model of a type."""
    config_class = CONFIG_MAPPING[name]
    config: PreTrainedConfig = config_class(**_small(config_class, _TEXT, CHANGES.get(name, {})))
    config.get_text_config().use_cache = False
    starts = ("decoder_start_token_id", "bos_token_id")
    places = (config, getattr(config, "decoder", None))
    if config.is_encoder_decoder and all(getattr(place, key, None) is None for place in places for key in starts):
        config.decoder_start_token_id = PAD  # as published checkpoints of T5 and its kin say
    return config


def build(name: str) -> Any:
    """The model in evaluation mode, with random weights and norms whose gains differ from dimension to dimension."""
    torch.manual_seed(0)
    config = config_of(name)
    model = _class_of(name, config)._from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter += 0.2 * torch.randn_like(parameter)
            elif parameter.min() == parameter.max():  # a gate that starts closed would make two sites one tensor
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save(name: str, directory: Path) -> Path:
    build(name).save_pretrained(directory)
    return directory


def why_not_alone(name: str) -> str | None:
    """Why transformers itself cannot run the type on token ids alone, or None where it can."""
    if missing := [package for package in PACKAGES.get(name, ()) if find_spec(package) is None]:
        return f"transformers needs {' and '.join(missing)} to build it, not installed here"
    return NEEDS.get(name)


def alone(model: Any, ids: torch.Tensor) -> Any:
    """What transformers itself gives for ids int64 (B, T) alone: its output, with `logits`."""
    texts = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **texts)


def _class_of(name: str, config: PreTrainedConfig) -> Any:
    """An encoder-decoder is built with both, though its type may be among the causal ones for its decoder alone."""
    names = _MAPPINGS[TYPES[name]]
    if config.is_encoder_decoder and name in _MAPPINGS["seq2seq"]:
        names = _MAPPINGS["seq2seq"]
    classes = names[name]
    return getattr(transformers, classes if isinstance(classes, str) else classes[0])


def _small(config_class: Any, sizes: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a small configuration of the class."""
    default = config_class()
    values = default.to_dict()
    sub_configs = getattr(config_class, "sub_configs", {})
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key in sizes and not isinstance(value, bool | list | dict | str) and (value is not None or key in _NEEDED):
            arguments[key] = sizes[key]
    if "qk_rope_head_dim" in arguments:  # latent attention: the rotated dims, and a key for each query
        arguments |= {"head_dim": arguments["qk_rope_head_dim"], "num_key_value_heads": HEADS}
    if sizes is _TEXT:
        arguments |= _some_blocks(default, values)
        arguments |= {key: _IMAGE_TOKENS + n for n, key in enumerate(_image_tokens(values))}
    if "mlp_only_layers" in values:
        arguments["mlp_only_layers"] = [1]
    for key in sub_configs:
        part = getattr(default, key, None)
        if isinstance(part, PreTrainedConfig):
            of_text = any(word in key for word in ("text", "decoder", "thinker", "language", "llm"))
            arguments[key] = _small(type(part), _TEXT if of_text else _OTHER, changes.get(key, {}))
            if type(part).model_type in CONFIG_MAPPING:
                arguments[key]["model_type"] = type(part).model_type
    for key, value in changes.items():
        if key not in arguments or key not in sub_configs:
            arguments[key] = values[key] | value if key == "rope_parameters" else value
    return arguments


_NEEDED = {"num_key_value_heads", "head_dim", "intermediate_size", "n_inner"}


def _image_tokens(values: Mapping[str, Any]) -> list[str]:
    ends = ("_token_id", "_token_index", "_start_id", "_end_id", "_newline_id")
    text = {"pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"}
    text |= {"decoder_start_token_id", "eod_token_id", "forced_bos_token_id", "forced_eos_token_id", "unk_token_id"}
    return [key for key, value in values.items() if key.endswith(ends) and isinstance(value, int) and key not in text]


def _some_blocks(default: PreTrainedConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists by block: of the first block of every kind, or of the first few."""
    blocks = getattr(default, "num_hidden_layers", None)
    found = {key: value for key, value in values.items() if isinstance(value, list | tuple) and blocks and blocks > 3}
    indices = {key: value for key, value in found.items() if value and list(value) == list(range(len(value)))}
    lists = {key: value for key, value in found.items() if len(value) == blocks and key not in indices}
    lists = {key: value for key, value in lists.items() if not isinstance(value[0], list)}
    if not lists and not indices:
        return {}
    lists = lists or {"": [0] * blocks}
    kinds: dict[Any, int] = {}
    for index, kind in enumerate(zip(*lists.values(), strict=True)):
        kinds.setdefault(kind, index)
    picked = set(kinds.values())
    picked |= set([index for index in range(blocks) if index not in picked][: max(0, BLOCKS - len(picked))])
    few = {key: [value[index] for index in sorted(picked)] for key, value in lists.items()}
    few = {key: [_TEXT.get(key, v) if isinstance(v, int) else v for v in value] for key, value in few.items() if key}
    if set(few.get("mlp_layer_types", [])) == {"sparse"}:
        few["mlp_layer_types"][0] = "dense"
    of_few = {key: [n for n, index in enumerate(sorted(picked)) if index in value] for key, value in indices.items()}
    return few | of_few | {"num_hidden_layers": len(picked)}
