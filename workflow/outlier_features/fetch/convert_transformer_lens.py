"""A checkpoint in TransformerLens' own format as a GPT-2 of transformers, which computes the same.

Such a checkpoint has a matrix a head, (n_heads, d_model, d_head), all facing right (x @ W), separate embedding and
unembedding, learned positions, and its tokenizer in a repository of its own.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from outlier_features.errors import InputError
from outlier_features.fetch.convert_bin import read_tensors
from outlier_features.files.artifacts import read_json

_CONFIG = "config.json"
_SIZES = ("d_model", "n_layers", "n_heads", "d_head", "d_mlp", "n_ctx", "d_vocab")
_ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu")  # transformers has them under the same names
_EPSILON = 1e-5  # of norms; the format's config does not name it
_BUFFERS = (".mask", ".IGNORE")


def convert_transformer_lens(folder: Path, files: Sequence[str], directory: Path) -> None:
    """Write the model `files` of `folder` (config.json, a .pth file, a tokenizer's files) into `directory`.

    A bias of the unembedding, for which a GPT-2 has no place, is dropped where it is the same for every token, since
    that changes no probability; otherwise the model is saved as one without a head, so that it has no loss. Raises
    `InputError` where it is another architecture, or its weights are not those that its config.json describes.
    """
    sizes, config = _config(read_json(folder / _CONFIG, *_SIZES))
    checkpoint = next(name for name in files if name.endswith(".pth"))
    weights = read_tensors(folder / checkpoint)
    given = {name: value.float() for name, value in weights.items() if not name.endswith(_BUFFERS)}
    state = _as_gpt2(_complete(given, sizes, checkpoint), sizes)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    model.load_state_dict(state, assign=True)
    bias = given.get("unembed.b_U", torch.zeros(1))
    saved = model if torch.equal(bias, bias[:1].expand_as(bias)) else model.transformer
    saved.save_pretrained(directory, max_shard_size="1TB")
    for name in files:
        if name not in (_CONFIG, checkpoint):
            shutil.copyfile(folder / name, directory / name)
    shutil.copymode(directory / _CONFIG, directory / "model.safetensors")  # else only its owner may read it


def _config(found: Mapping[str, Any]) -> tuple[dict[str, int], GPT2Config]:
    sizes = {name: int(found[name]) for name in _SIZES}
    norm = found.get("normalization", found.get("normalization_type"))
    expected = {
        "act_fn": (found.get("act_fn"), _ACTIVATIONS),
        "normalization": (norm, ("LN", "LNPre")),
        "attn_only": (found.get("attn_only", False), (False,)),
        "shortformer_pos": (found.get("shortformer_pos", False), (False,)),
        "final_rms": (found.get("final_rms", False), (False,)),
        "architecture": (found.get("architecture", "neel"), ("neel",)),
        "n_heads * d_head": (sizes["n_heads"] * sizes["d_head"], (sizes["d_model"],)),
    }
    for key, (value, allowed) in expected.items():
        if value not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise InputError(f"transformer_lens: {key} in {_CONFIG} is {value!r}, expected {wanted}")
    config = GPT2Config(
        vocab_size=sizes["d_vocab"], n_positions=sizes["n_ctx"], n_embd=sizes["d_model"], n_layer=sizes["n_layers"],
        n_head=sizes["n_heads"], n_inner=sizes["d_mlp"], activation_function=found["act_fn"],
        layer_norm_epsilon=_EPSILON, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return sizes, config


def _shapes(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The tensors of a whole checkpoint."""
    d, heads, d_head = sizes["d_model"], sizes["n_heads"], sizes["d_head"]
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (sizes["d_vocab"], d), "pos_embed.W_pos": (sizes["n_ctx"], d),
        "ln_final.w": (d,), "ln_final.b": (d,),
        "unembed.W_U": (d, sizes["d_vocab"]), "unembed.b_U": (sizes["d_vocab"],),
    }  # fmt: skip
    for layer in range(sizes["n_layers"]):
        block = {
            **{f"ln{norm}.{name}": (d,) for norm in (1, 2) for name in "wb"},
            **{f"attn.W_{name}": (heads, d, d_head) for name in "QKV"},
            **{f"attn.b_{name}": (heads, d_head) for name in "QKV"},
            "attn.W_O": (heads, d_head, d), "attn.b_O": (d,),
            "mlp.W_in": (d, sizes["d_mlp"]), "mlp.b_in": (sizes["d_mlp"],),
            "mlp.W_out": (sizes["d_mlp"], d), "mlp.b_out": (d,),
        }  # fmt: skip
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def _complete(given: Mapping[str, Tensor], sizes: Mapping[str, int], checkpoint: str) -> dict[str, Tensor]:
    """The weights, with gains of 1 and biases of 0 where there are none, as for norms without parameters."""
    shapes = _shapes(sizes)
    if unknown := sorted(given.keys() - shapes.keys()):
        raise InputError(f"transformer_lens: {checkpoint} has a weight {unknown[0]!r}, expected none of that name")
    weights = {}
    for name, shape in shapes.items():
        last = name.rsplit(".", 1)[1]
        if name in given and tuple(given[name].shape) != shape:
            raise InputError(
                f"transformer_lens: {name} in {checkpoint} is of shape {list(given[name].shape)}, expected "
                f"{list(shape)} by its {_CONFIG}"
            )
        if name not in given and last.startswith("W_"):
            raise InputError(f"transformer_lens: {checkpoint} lacks {name}, expected every matrix of its {_CONFIG}")
        weights[name] = given.get(name, torch.ones(shape) if last == "w" else torch.zeros(shape))
    return weights


def _as_gpt2(weights: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The weights by transformers' names; its Conv1D faces right too."""
    d = sizes["d_model"]
    state = {
        "transformer.wte.weight": weights["embed.W_E"],
        "transformer.wpe.weight": weights["pos_embed.W_pos"],
        "transformer.ln_f.weight": weights["ln_final.w"],
        "transformer.ln_f.bias": weights["ln_final.b"],
        "lm_head.weight": weights["unembed.W_U"].T,
    }
    for layer in range(sizes["n_layers"]):
        old, new = f"blocks.{layer}.", f"transformer.h.{layer}."
        for norm in (1, 2):
            state[f"{new}ln_{norm}.weight"] = weights[f"{old}ln{norm}.w"]
            state[f"{new}ln_{norm}.bias"] = weights[f"{old}ln{norm}.b"]
        matrices = [weights[f"{old}attn.W_{name}"].transpose(0, 1).reshape(d, d) for name in "QKV"]
        state[f"{new}attn.c_attn.weight"] = torch.cat(matrices, dim=1)
        state[f"{new}attn.c_attn.bias"] = torch.cat([weights[f"{old}attn.b_{name}"].flatten() for name in "QKV"])
        state[f"{new}attn.c_proj.weight"] = weights[f"{old}attn.W_O"].reshape(d, d)
        state[f"{new}attn.c_proj.bias"] = weights[f"{old}attn.b_O"]
        for ours, theirs in (("c_fc", "in"), ("c_proj", "out")):
            state[f"{new}mlp.{ours}.weight"] = weights[f"{old}mlp.W_{theirs}"]
            state[f"{new}mlp.{ours}.bias"] = weights[f"{old}mlp.b_{theirs}"]
    return {name: value.contiguous() for name, value in state.items()}
