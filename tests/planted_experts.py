"""A tiny mixture-of-experts model in which one expert makes a massive activation at one token."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

LAYER, EXPERT, DIM = 1, 3, 7
_SIGN = 20  # the dim by which the router knows the token


def planted_moe(path: Path, token: int, vocabulary: int = 300) -> None:
    """Save an OLMoE of 4 blocks with 8 experts each, of which two are chosen.

    In block 1 the token, and no other, goes to expert 3, whose first neuron writes some thousands to dim 7.
    """
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "olmoe", vocab_size=vocabulary, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=16, max_position_embeddings=128, num_experts=8, num_experts_per_tok=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(5)
        model.model.embed_tokens.weight[:, _SIGN] = -0.2
        model.model.embed_tokens.weight[token, _SIGN] = 2
        mlp = model.model.layers[LAYER].mlp
        mlp.gate.weight[EXPERT] = 0
        mlp.gate.weight[EXPERT, _SIGN] = 0.6
        for row in (0, 16):  # of gate and up
            mlp.experts.gate_up_proj[EXPERT, row] = 0
            mlp.experts.gate_up_proj[EXPERT, row, _SIGN] = 1
        mlp.experts.down_proj[EXPERT, DIM, 0] = -300
    model.save_pretrained(path)
