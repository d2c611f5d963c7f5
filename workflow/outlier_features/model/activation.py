"""The activation function of a dense MLP, and what a gated MLP multiplies it by."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN


def activation_of(config: Any, module: nn.Module | None = None) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The module that reads `mlp_pre`; where a block calls a plain function instead, that which the config names."""
    names = (getattr(config, key, None) for key in ("hidden_act", "hidden_activation", "activation_function"))
    return module or next((ACT2FN[name] for name in names if name in ACT2FN), None)


def possible_ups(linears: int, tensors: Mapping[str, torch.Tensor], width: int) -> Iterator[torch.Tensor]:
    """Outputs of an MLP's linear layers before the last, or halves of them (gate and up in one matrix), `width` wide.

    linears   how many layers it has
    tensors   their outputs (..., H), by `mlp_linears.n`
    """
    for n in range(linears - 1):
        written = tensors[f"mlp_linears.{n}"]
        yield from (up for up in (written, *written.chunk(2, dim=-1)) if up.shape[-1] == width)
