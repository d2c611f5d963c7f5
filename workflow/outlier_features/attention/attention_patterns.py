"""Attention patterns of a model that runs eager attention: found by structure, handed out one layer at a time.

Which module of a block returns its patterns is seen on the probe: the innermost with weights whose output holds a
tensor (B, heads, T, T), zero where a query cannot see a key, with rows that sum to 1. Where they sum to less and the
module has a weight for each head (gpt-oss), the rest is the mass of a learned sink, which transformers cuts off: it
becomes a last column.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from outlier_features.errors import InputError
from outlier_features.model.models import LoadedModel, probe_ids
from outlier_features.model.sites import find_sites

Tensor = torch.Tensor


@dataclass(frozen=True)
class Attention:
    """Where a block's patterns are found: item `item` of what the module at `path` returns, for `heads` heads.

    group          heads that share one KV head, as the module itself has it; None if it has no such number
    learned_sink   whether its softmax has a learned logit beside those of the keys
    """

    layer: int
    path: str
    module: nn.Module
    item: int
    heads: int
    group: int | None
    learned_sink: bool

    @property
    def name(self) -> str:
        return f"layer {self.layer} ({self.path})"


@dataclass(frozen=True)
class LayerPatterns:
    """The patterns of one layer in one pass.

    pattern   probabilities (B, heads, T, T), queries in rows; (B, heads, T, T + 1) with a learned sink
    visible   bool (T, T): which keys (columns) a query (row) can see
    """

    attention: Attention
    pattern: Tensor
    visible: Tensor


def find_attention(loaded: LoadedModel) -> list[Attention]:
    """The layers that have patterns, in order; recurrent and linear attention have none.

    Raises `InputError` where the model does not run eager attention, or what looks like patterns are none.
    """
    if loaded.attention != "eager":
        raise InputError(f"attention: found {loaded.attention!r}, which leaves no patterns, expected 'eager'")
    ids = probe_ids(loaded.model)
    found: dict[int, Attention] = {}
    lacking = []

    def look(layer: int, path: str, module: nn.Module, args: list[Any], output: Any) -> None:
        at = _describe(layer, path, module, output, ids.shape)
        if at is not None and layer not in found:  # the modules around it may return it as well
            found[layer] = at
            lacking.append(at.learned_sink and _lacks_mass(_items(output)[at.item]))

    with ExitStack() as hooks, torch.inference_mode():
        for layer, block in enumerate(find_sites(loaded)):
            for name, module in loaded.model.get_submodule(block.path).named_modules():
                hooks.enter_context(_hooked(module, partial(look, layer, f"{block.path}.{name}", module)))
        loaded.base(ids)
    attention = [replace(at, learned_sink=at.learned_sink and any(lacking)) for at in found.values()]
    run_patterns(loaded, attention, ids, lambda patterns: None)  # checks them
    return attention


def _describe(layer: int, path: str, module: nn.Module, output: Any, shape: torch.Size) -> Attention | None:
    """The attention at a module that returned a pattern's shape; `shape` is that of the probe's token ids."""
    if next(module.parameters(), None) is None:
        return None  # dropout, which passes a pattern on and knows no mask
    batch, length = shape
    for item, value in enumerate(_items(output)):
        if not torch.is_tensor(value) or not value.is_floating_point() or value.ndim != 4:
            continue
        if (value.shape[0], *value.shape[2:]) == (batch, length, length):
            heads = value.shape[1]
            per_head = any(parameter.shape == (heads,) for parameter in module.parameters(recurse=False))
            # The number by which the module repeats its keys: a config may have a number of KV heads that it ignores.
            group = getattr(module, "num_key_value_groups", None)
            return Attention(layer, path, module, item, heads, group if isinstance(group, int) else None, per_head)
    return None


def run_patterns(
    loaded: LoadedModel, attention: Sequence[Attention], ids: Tensor, receive: Callable[[LayerPatterns], None]
) -> None:
    """Run token ids (B, T), none of them padding, and hand out each layer's patterns while the pass goes on.

    `receive` copies what it keeps: then no more than one layer's patterns are in memory at a time. Raises `InputError`
    where a pattern is not one: not finite or below zero, above zero where a query cannot see, or with rows that do not
    sum to 1.
    """
    waiting = {at.layer for at in attention}

    def hand_out(at: Attention, args: list[Any], output: Any) -> None:
        waiting.discard(at.layer)
        receive(_checked(at, _items(output)[at.item], _visible(args, ids.shape[1], loaded)))

    with ExitStack() as hooks, torch.inference_mode():
        for at in attention:
            hooks.enter_context(_hooked(at.module, partial(hand_out, at)))
        loaded.base(ids)
    if waiting:
        raise InputError(f"{loaded.model_type}: layer {min(waiting)} did not run, expected its attention in every pass")


@contextmanager
def _hooked(module: nn.Module, receive: Callable[[list[Any], Any], None]) -> Iterator[None]:
    """While the model runs, call `receive(arguments, output)` after each call of the module."""

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        receive([*args, *kwargs.values()], output)

    handle = module.register_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _items(output: Any) -> list[Any]:
    return list(output) if isinstance(output, (tuple, list)) else [output]


def _visible(args: Sequence[Any], length: int, loaded: LoadedModel) -> Tensor:
    """Bool (T, T), from whether the model is causal and the masks among attention's arguments (sliding windows)."""
    visible = torch.ones(length, length, dtype=torch.bool, device=loaded.device)
    if loaded.causal:
        visible = visible.tril()
    for mask in args:
        if torch.is_tensor(mask) and mask.ndim == 4 and mask.shape[2:] == visible.shape:
            seen = mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask.bool()
            visible = visible & seen.flatten(0, 1).any(dim=0)
    return visible


def _checked(at: Attention, pattern: Tensor, visible: Tensor) -> LayerPatterns:
    if not pattern.isfinite().all() or bool((pattern < 0).any()):
        raise InputError(f"{at.name}: a tensor of a pattern's shape has values below 0 or not finite, expected shares")
    hidden = float(pattern.masked_fill(visible, 0).max())
    if hidden > 1e-6:
        raise InputError(f"{at.name}: a query gives {hidden:.3g} to a key that it cannot see, expected 0")
    total = pattern.sum(dim=-1, keepdim=True, dtype=torch.float32)
    low, high = float(total.min()), float(total.max())
    if high > 1 + _tolerance(pattern) or (_lacks_mass(pattern) and not at.learned_sink):
        raise InputError(
            f"{at.name}: rows of the pattern sum to {low:.4g} to {high:.4g}, expected 1, or less with a learned sink"
        )
    if at.learned_sink:
        pattern = torch.cat([pattern, (1 - total).clamp(min=0).to(pattern.dtype)], dim=-1)
    return LayerPatterns(at, pattern, visible)


def _lacks_mass(pattern: Tensor) -> bool:
    return bool((pattern.sum(dim=-1, dtype=torch.float32) < 1 - _tolerance(pattern)).any())


def _tolerance(pattern: Tensor) -> float:
    return max(1e-5, 4 * torch.finfo(pattern.dtype).eps)
