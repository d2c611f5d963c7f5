"""What llama.cpp calls a model's linear layers, by the map that its own package `gguf` has.

An importance matrix is by input channel. llama.cpp's converter reorders rows of some weights, which changes nothing of
it, and columns of a few (`_COLUMNS`), which have no entry here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, TensorNameMap, get_tensor_name_map

from outlier_features.quantize.measured_layers import MeasuredLayer

# Types of transformers that llama.cpp converts to an architecture of another name, by `@ModelBase.register` and
# `model_arch` in conversion/*.py of https://github.com/ggml-org/llama.cpp. All others are called alike.
_OTHER_NAMES = {
    "bamba": MODEL_ARCH.GRANITE_HYBRID,
    "camembert": MODEL_ARCH.BERT,
    "cohere": MODEL_ARCH.COMMAND_R,
    "deepseek_v2": MODEL_ARCH.DEEPSEEK2,
    "deepseek_v3": MODEL_ARCH.DEEPSEEK2,
    "distilbert": MODEL_ARCH.BERT,
    "falcon_mamba": MODEL_ARCH.MAMBA,
    "glm": MODEL_ARCH.CHATGLM,
    "glm4_moe_lite": MODEL_ARCH.DEEPSEEK2,
    "gpt_bigcode": MODEL_ARCH.STARCODER,
    "granitemoehybrid": MODEL_ARCH.GRANITE_HYBRID,
    "granitemoeshared": MODEL_ARCH.GRANITE_MOE,
    "hunyuan_v1_dense": MODEL_ARCH.HUNYUAN_DENSE,
    "internlm3": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "mixtral": MODEL_ARCH.LLAMA,
    "mt5": MODEL_ARCH.T5,
    "olmo3": MODEL_ARCH.OLMO2,
    "phi": MODEL_ARCH.PHI2,
    "roberta": MODEL_ARCH.BERT,
    "umt5": MODEL_ARCH.T5,
    "xlm-roberta": MODEL_ARCH.BERT,
}
# `_LinearAttentionVReorderBase` in conversion/qwen.py, `shuffle_attn_output_weight` in conversion/plamo.py.
_COLUMNS = {MODEL_ARCH.QWEN35: "ssm_out", MODEL_ARCH.QWEN35MOE: "ssm_out", MODEL_ARCH.PLAMO: "attn_output"}
_REORDERED = "llama.cpp orders its columns otherwise"


@dataclass(frozen=True)
class GgufNames:
    """By name of a linear layer the tensors of a GGUF file that have its weight; and why others have none."""

    tensors: Mapping[str, Sequence[str]]
    left_out: Mapping[str, str]


def gguf_names(layers: Sequence[MeasuredLayer], config: Mapping[str, Any], *, tied: bool) -> GgufNames:
    """The names of the tensors of `layers`.

    config   the model's config.json
    tied     the head's matrix is that of the embeddings: a GGUF file may then have it as `token_embd.weight` alone
    """
    kind = str((config.get("text_config") or config).get("model_type") or config.get("model_type"))
    arch = _architecture(kind)
    if arch is None:
        return GgufNames(
            {}, {one.name: f"the package gguf knows no architecture for the type {kind}" for one in layers}
        )
    blocks = max((one.layer for one in layers if one.layer is not None), default=-1) + 1
    names = get_tensor_name_map(arch, blocks)
    tensors: dict[str, Sequence[str]] = {}
    left_out: dict[str, str] = {}
    for one in layers:
        found = [name for part in _parts(one) if (name := _find(names, part))]
        if one.layer is None:
            found = ["output", *(["token_embd"] if tied else [])]
        if not found:
            left_out[one.name] = (
                f"the map of architecture {MODEL_ARCH_NAMES[arch]} in the package gguf has no such name"
            )
        elif arch in _COLUMNS and found[0].endswith(f".{_COLUMNS[arch]}"):
            left_out[one.name] = _REORDERED
        else:
            tensors[one.name] = [f"{name}.weight" for name in found]
    return GgufNames(tensors, left_out)


def _architecture(kind: str) -> MODEL_ARCH | None:
    if kind in _OTHER_NAMES:
        return _OTHER_NAMES[kind]
    return next((arch for arch, name in MODEL_ARCH_NAMES.items() if _plain(name) == _plain(kind)), None)


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.removesuffix("_text"))


def _parts(layer: MeasuredLayer) -> list[str]:
    """What is one matrix of each expert here may be two there."""
    whole, last = layer.name, layer.name.rpartition(".")[2]
    if layer.experts and last == "gate_up_proj":
        return [whole, *(whole.removesuffix(last) + half for half in ("gate_proj", "up_proj"))]
    return [whole]


def _find(names: TensorNameMap, module: str) -> str | None:
    """The map has names of checkpoints: with or without the name of the model around its blocks."""
    plain = module.replace("language_model.", "", 1)
    candidates = (module, plain, module.partition(".")[2], plain.partition(".")[2], f"model.{plain}")
    return next((found for one in candidates if (found := names.get_name(one))), None)
