"""Floating-point operations of a forward pass, from a pass on the meta device, where only shapes are computed.

    2 x weights that a token meets x tokens, the head among them + 2 x each product of two activations

The products of activations are attention's scores and what they weigh: all of them, those that a mask removes too.
Additions, norms, activation functions and recurrences that are no matrix products are not counted.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from outlier_features.errors import InputError
from outlier_features.model.loading import Part
from outlier_features.plan.model_size import ModelSize, experts_of

FORMULA = (
    "2 x weights that a token meets x tokens (embeddings are looked up, the head counts) + 2 x the products "
    "of attention (scores and weighted values of every pair of positions, masked ones too)"
)
_WEIGHTED = {"aten.mm", "aten.addmm", "aten.convolution"}
_MEASURED = (64, 128, 256)  # tokens: what passes of these take says what longer ones do


@dataclass(frozen=True)
class Flops:
    """Of one sequence: products with weights (head among them), of the head alone, and of activations with another.

    softmaxes   over the positions: how often a pass attends
    convolves   whether it has convolutions, as mixers other than attention do
    """

    weights: int
    head: int
    attention: int
    softmaxes: int
    convolves: bool

    @property
    def total(self) -> int:
        return self.weights + self.attention


def forward_flops(model: PreTrainedModel, size: ModelSize, tokens: int, part: Part | None = None) -> Flops:
    """Of one sequence of `tokens` through a model on the meta device with eager attention.

    Raises `InputError` where the model does not run there, or it is not known how many experts a token meets.
    """
    if size.experts is None:
        raise InputError("not known: its config does not say how many experts a token meets")
    found = [_products(model, length, part) for length in (_MEASURED if tokens > _MEASURED[-1] else (tokens,))]
    weighted, paired = (_longer([getattr(one, kind) for one in found], tokens) for kind in ("weighted", "paired"))
    head = model.get_output_embeddings()
    read = 2 * tokens * head.weight.numel() if head is not None and part != "encoder" else 0
    return Flops(weighted + 2 * tokens * size.experts, read, paired, found[0].softmaxes, found[0].convolves)


def _longer(measured: Sequence[int], tokens: int) -> int:
    """The value at `tokens` of the parabola through what was measured, or the one value that was."""
    if len(measured) == 1:
        return measured[0]
    total = Fraction(0)
    for length, value in zip(_MEASURED, measured, strict=True):
        others = [other for other in _MEASURED if other != length]
        total += value * math.prod(Fraction(tokens - other, length - other) for other in others)
    return round(total)


@dataclass(frozen=True)
class _Products:
    """FLOPs of products with weights, routed experts left out, and of products of activations."""

    weighted: int
    paired: int
    softmaxes: int
    convolves: bool


@torch.no_grad()
def _products(model: PreTrainedModel, tokens: int, part: Part | None) -> _Products:
    ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    with _experts_left_out(model), FlopCounterMode(display=False) as counter, _OnShapes(tokens) as shapes:
        try:
            _run(model, ids, part)
        except Exception as error:  # whatever a model's code asks of values that are not there
            reason = (str(error).strip().splitlines() or [""])[0]
            raise InputError(f"not known: it does not run without weights: {type(error).__name__}: {reason}") from error
    counts = {str(name): int(count) for name, count in counter.get_flop_counts()["Global"].items()}
    weighted = sum(count for name, count in counts.items() if name in _WEIGHTED)
    return _Products(weighted, sum(counts.values()) - weighted, shapes.softmaxes, "aten.convolution" in counts)


def _run(model: PreTrainedModel, ids: torch.Tensor, part: Part | None) -> None:
    if part == "encoder":
        model.get_encoder()(ids)
    elif part == "decoder":
        model(input_ids=ids[:, 1:], decoder_input_ids=ids, use_cache=False)
    else:
        model(ids, **({"use_cache": False} if hasattr(model.config, "use_cache") else {}))


class _OnShapes(TorchDispatchMode):
    """transformers asks the values of a mask whether all is as usual: it is. Counts softmaxes over all positions."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens
        self.softmaxes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool and args[0].is_meta:
            return True
        if func is torch.ops.aten._softmax.default and args[0].ndim > 2 and args[0].shape[-2] >= self._tokens - 1:
            self.softmaxes += args[0].shape[-1] >= self._tokens - 1  # learned sinks add a column
        return func(*args, **(kwargs or {}))


@contextmanager
def _experts_left_out(model: PreTrainedModel) -> Iterator[None]:
    """Which experts run depends on values."""
    modules: list[Any] = list(experts_of(model))
    for module in modules:
        module.forward = _zeros
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _zeros(hidden: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
    return torch.zeros_like(hidden)
