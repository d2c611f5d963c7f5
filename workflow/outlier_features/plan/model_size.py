"""How large a model is, of its modules on the meta device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from outlier_features.model.memory import WIDTH_NAMES, Weights
from outlier_features.model.models import holds_experts, text_config
from outlier_features.model.neuron_count import neurons_of_blocks

_CHOSEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_top_k",
    "moe_topk",
    "moe_k",
    "top_k",
)


@dataclass(frozen=True)
class ModelSize:
    """Parameters, a tied one counted once.

    active   that a token meets: of the routed experts those that are chosen for it; None where the config does not say
    experts  weights of routed experts that a token meets, without biases; 0 of a dense model, None as `active`
    weights  bytes in the dtype of the run
    blocks, width   None where the config does not say
    neurons  of each block that has any, see `neuron_count`; None where the width is not known
    channels that its linear layers read, each counted for itself, of experts all; routers are among them
    """

    parameters: int
    active: int | None
    experts: int | None
    has_experts: bool
    weights: Weights
    blocks: int | None
    width: int | None
    neurons: tuple[int, ...] | None
    channels: int


def size_of(model: PreTrainedModel) -> ModelSize:
    """Of a model whose weights may be on the meta device, in its dtype."""
    config = text_config(model)
    named = dict(model.named_parameters())
    held = [parameter for module in experts_of(model) for parameter in module.parameters(recurse=False)]
    chosen = _chosen(model)
    active = met = None
    if not held:
        active, met = _total(named), 0
    elif chosen is not None:
        idle = sum(one.numel() - one.numel() // len(one) * min(chosen, len(one)) for one in held)
        active = _total(named) - idle
        met = sum(one.numel() // len(one) * min(chosen, len(one)) for one in held if one.ndim == 3)
    width = _number(config, *WIDTH_NAMES)
    shapes = {name: tuple(one.shape) for name, one in named.items()}
    return ModelSize(
        _total(named),
        active,
        met,
        bool(held),
        Weights.of({name: one.numel() * one.element_size() for name, one in named.items()}),
        _number(config, "num_hidden_layers", "encoder_layers", "num_layers"),
        width,
        None if width is None else tuple(neurons_of_blocks(shapes, width)),
        sum(_channels(model)),
    )


def _channels(model: nn.Module) -> Iterator[int]:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield module.in_features
        elif isinstance(module, Conv1D):
            yield module.weight.shape[0]
        elif holds_experts(module) and hasattr(module, "is_transposed"):
            shapes = (one.shape for one in module.parameters(recurse=False) if one.ndim == 3)
            yield from (shape[0] * shape[1 if module.is_transposed else 2] for shape in shapes)


def experts_of(model: nn.Module) -> Iterator[nn.Module]:
    """Modules that hold the routed experts of a block in one tensor each."""
    return (module for module in model.modules() if holds_experts(module))


def _total(named: dict[str, nn.Parameter]) -> int:
    return sum(one.numel() for one in named.values())


def _chosen(model: PreTrainedModel) -> int | None:
    """Experts that are chosen for a token."""
    return _number(text_config(model), *_CHOSEN)


def _number(config: Any, *names: str) -> int | None:
    """The first of the numbers that a config has."""
    values = (getattr(config, name, None) for name in names)
    return next((one for one in values if isinstance(one, int) and not isinstance(one, bool) and one > 0), None)
