"""The activation function of a dense MLP, and what a gated MLP multiplies it by."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.activations import ACT2FN

if TYPE_CHECKING:
    from outlier_features.model.sites import Block


def activation_of(block: "Block", config: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The module that reads `mlp_pre`; where the block calls a plain function, the one that the config names."""
    return block.activation or configured_activation(config)


def configured_activation(config: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The function that a config names as that of its MLPs."""
    names = (getattr(config, key, None) for key in ("hidden_act", "hidden_activation", "activation_function"))
    return next((ACT2FN[name] for name in names if name in ACT2FN), None)


def possible_ups(block: "Block", tensors: Mapping[str, torch.Tensor], width: int) -> Iterator[torch.Tensor]:
    """Outputs of the MLP's linear layers before the last, or halves of them (gate and up in one matrix), `width` wide.

    tensors   the outputs (..., H), by `mlp_linears.n`
    """
    for n in range(len(block.mlp_linears) - 1):
        written = tensors[f"mlp_linears.{n}"]
        yield from (up for up in (written, *written.chunk(2, dim=-1)) if up.shape[-1] == width)
