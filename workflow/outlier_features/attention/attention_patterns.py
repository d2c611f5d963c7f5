"""Attention patterns of a model that runs eager attention: found by what is computed, handed out a layer at a time.

A pattern is a softmax over keys whose result multiplies values: (heads, T, T), queries in rows. Both are seen among
torch's own operations while a block runs, so nothing depends on what modules return, on their names, or on a mask's
convention:

- the weights are what the product with the values reads, bit by bit what a softmax in the same block gave. A softmax
  with one column more than there are keys (gpt-oss) has a learned sink, which the product leaves out;
- a query cannot see a key whose score is `HIDDEN` below the largest of its row in every head: masks put it there;
- heads that read the same KV head multiply the same values.

In a causal model, weights above the diagonal are no self-attention (a decoder's cross-attention).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from outlier_features.errors import InputError
from outlier_features.model.hooks import hooks
from outlier_features.model.models import LoadedModel, overflow_hint, probe_ids

Tensor = torch.Tensor
Calls = dict[tuple[nn.Module, int], int]  # the layer of each call, from 0, of each block in a pass
HIDDEN = 5000.0  # masks in use put a score 10,000 or more below the others
FUTURE = 1e-6  # the most that all heads of a causal query give to later keys, by rounding
_SOFTMAX = (torch.ops.aten._softmax, torch.ops.aten._safe_softmax)
_PRODUCTS = (torch.ops.aten.bmm, torch.ops.aten.mm, torch.ops.aten.baddbmm)


@dataclass(frozen=True)
class Attention:
    """The self-attention of a layer: where its softmax runs (the innermost module), and for how many heads.

    block, call    the layer is this call, from 0, of this module in a pass: several layers may share a block
    kv_heads       for each head the KV head that it reads, in the order in which heads first read them; None where
                   each head has its own
    learned_sink   whether its softmax has a learned logit beside those of the keys
    """

    layer: int
    block: nn.Module
    call: int
    path: str
    heads: int
    kv_heads: tuple[int, ...] | None
    learned_sink: bool

    @property
    def name(self) -> str:
        return f"layer {self.layer} ({self.path})"


@dataclass(frozen=True)
class LayerPatterns:
    """The patterns of one layer in one pass.

    pattern   probabilities (heads, T, T), queries in rows; (heads, T, T + 1) with a learned sink
    visible   bool (T, T): which keys (columns) a query (row) can see
    """

    attention: Attention
    pattern: Tensor
    visible: Tensor


@dataclass(frozen=True)
class _Weighting:
    """Weights (heads, T, T) that multiplied values (heads, T, width) in a layer, as they came from a softmax.

    sink    the softmax's column that is no key, (heads, T, 1), or None
    hides   bool (T, T): no head can give anything to this key
    """

    layer: int
    path: str
    weights: Tensor
    values: Tensor
    sink: Tensor | None
    hides: Tensor

    def sees_future(self) -> bool:
        return float(self.weights.sum(dim=0, dtype=torch.float32).triu(1).sum(dim=-1).max()) > FUTURE


def find_attention(loaded: LoadedModel) -> list[Attention]:
    """The layers that have patterns, in order; recurrent and linear attention have none.

    Where a block has several self-attentions, the first is meant. Raises `InputError` where the model does not run
    eager attention.
    """
    if loaded.attention != "eager":
        raise InputError(f"attention: found {loaded.attention!r}, which leaves no patterns, expected 'eager'")
    calls = {(block.module, block.call): layer for layer, block in enumerate(loaded.stack.blocks)}
    call_of = {layer: call for call, layer in calls.items()}
    found: dict[int, Attention] = {}

    def look(seen: _Weighting) -> None:
        if seen.layer not in found and not (loaded.causal and seen.sees_future()):
            kv_heads = _kv_heads(seen.values, loaded.model.get_submodule(seen.path))
            heads, learned = len(seen.weights), seen.sink is not None
            found[seen.layer] = Attention(seen.layer, *call_of[seen.layer], seen.path, heads, kv_heads, learned)

    # One sequence, of a length that no number of heads or experts is likely to be.
    _watch(loaded, calls, probe_ids(loaded.model).reshape(-1)[:11], look)
    return [found[layer] for layer in sorted(found)]


def run_patterns(
    loaded: LoadedModel, attention: Sequence[Attention], ids: Tensor, receive: Callable[[LayerPatterns], None]
) -> None:
    """Run one sequence of token ids (T,), none of them padding, and hand out each layer's patterns during the pass.

    `receive` copies what it keeps: then no more than one layer's patterns are in memory at a time. Raises `InputError`
    where a layer's attention does not run as it was found, or its weights are not finite.
    """
    waiting = {at.layer: at for at in attention}

    def hand_out(seen: _Weighting) -> None:
        at = waiting.get(seen.layer)
        if at is not None and (at.path, at.heads) == (seen.path, len(seen.weights)):
            receive(_patterns(waiting.pop(seen.layer), seen, loaded))

    _watch(loaded, {(at.block, at.call): at.layer for at in attention}, ids, hand_out)
    if waiting:
        raise InputError(f"{loaded.model_type}: {next(iter(waiting.values())).name} gave no attention pattern")


def _patterns(at: Attention, seen: _Weighting, loaded: LoadedModel) -> LayerPatterns:
    pattern = seen.weights if seen.sink is None else torch.cat([seen.weights, seen.sink], dim=-1)
    if not pattern.sum(dtype=torch.float32).isfinite():  # without a copy as large as the pattern
        raise InputError(
            f"dtype: {loaded.dtype} gives attention weights that are not finite in {at.name}, expected finite ones"
            f"{overflow_hint(loaded.dtype)}"
        )
    if loaded.causal and seen.sees_future():
        raise InputError(f"{at.name}: a query gives weight to later keys, expected none in a causal model")
    visible = ~seen.hides
    return LayerPatterns(at, pattern, visible.tril() if loaded.causal else visible)


def _kv_heads(values: Tensor, module: nn.Module) -> tuple[int, ...] | None:
    """The KV head of each head, from values (heads, T, width): heads of one KV head have the same.

    None too where the module counts other groups (DiffLlama, where heads share values but not keys).
    """
    first: list[int] = []  # a head of each KV head
    of_head = []
    for head in range(len(values)):
        same = next((n for n, other in enumerate(first) if torch.equal(values[head], values[other])), len(first))
        if same == len(first):
            first.append(head)
        of_head.append(same)
    group = getattr(module, "num_key_value_groups", None)
    as_stated = not isinstance(group, int) or len(first) * group == len(values)
    return tuple(of_head) if as_stated and len(first) < len(values) else None


def _watch(loaded: LoadedModel, calls: Calls, ids: Tensor, receive: Callable[[_Weighting], None]) -> None:
    """Run token ids (T,) and hand out every weighting of values by a softmax over the T positions in these calls."""
    watch = _Watch(len(ids), receive)
    paths = {module: path for path, module in loaded.model.named_modules()}
    # no_grad: in inference mode, composite operations would hide those that they are made of.
    with watch.following(calls, paths), watch, torch.no_grad():
        loaded.base(ids[None])


@dataclass(frozen=True)
class _Softmax:
    """A softmax (heads, T, T or T + 1) in the block that runs, and which of its scores are too low in every head."""

    path: str
    output: Tensor
    hides: Tensor


class _Watch(TorchDispatchMode):
    """Sees every operation of torch: softmax first, then the product that reads what it gave."""

    def __init__(self, length: int, receive: Callable[[_Weighting], None]):
        super().__init__()
        self._length = length
        self._receive = receive
        self._layer: int | None = None
        self._running: list[str] = []  # paths of the modules that run, outermost first
        self._softmaxes: list[_Softmax] = []

    def following(self, calls: Calls, paths: Mapping[nn.Module, str]) -> AbstractContextManager[None]:
        """Know which layer runs, and which module in it."""
        blocks = list(dict.fromkeys(block for block, _ in calls))
        ran = dict.fromkeys(blocks, 0)

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._layer is None:
                self._layer = calls.get((module, ran[module]))
            ran[module] += 1

        def end(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not self._running:
                self._layer = None
                self._softmaxes.clear()

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._running.append(paths[module])

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._running.pop()

        modules = {module for block in blocks for module in block.modules()}
        return hooks(
            before=[*((block, begin) for block in blocks), *((module, enter) for module in modules)],
            after=[*((module, leave) for module in modules), *((block, end) for block in blocks)],
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if self._layer is not None:
            if func.overloadpacket in _SOFTMAX:
                self._note(args[0], args[1], output)
            elif func.overloadpacket in _PRODUCTS and self._softmaxes:
                self._compare(*args[-2:])
        return output

    def _note(self, scores: Tensor, dim: int, output: Tensor) -> None:
        length, shape = self._length, output.shape
        if len(shape) < 2 or dim % len(shape) != len(shape) - 1 or shape[-2] != length:
            return
        if shape[-1] in (length, length + 1):
            by_head = scores.reshape(-1, length, shape[-1]).float()
            hides = (by_head - by_head.amax(dim=-1, keepdim=True)).amax(dim=0) <= -HIDDEN
            self._softmaxes.append(_Softmax(self._running[-1], output.reshape(by_head.shape), hides))

    def _compare(self, left: Tensor, right: Tensor) -> None:
        for weights, values in ((left, right), (right.mT, left.mT)):
            for softmax in self._softmaxes if weights.shape[-1] == self._length else ():
                seen = self._weighting(softmax, weights, values)
                if seen is not None:
                    self._softmaxes.remove(softmax)
                    self._receive(seen)
                    return

    def _weighting(self, softmax: _Softmax, weights: Tensor, values: Tensor) -> _Weighting | None:
        heads, length, columns = softmax.output.shape
        if self._layer is None or weights.numel() != heads * length * length:
            return None
        weights = weights.reshape(heads, length, length)
        for first in range(columns - length + 1):
            keys = slice(first, first + length)
            if _same(softmax.output[..., keys].to(weights.dtype), weights):
                sink = None if columns == length else softmax.output[..., [-1 if first == 0 else 0]].to(weights.dtype)
                # Heads of one KV head may be rows of one product.
                each = values.reshape(-1, *values.shape[-2:])
                each = each.repeat_interleave(heads // len(each), dim=0)
                return _Weighting(self._layer, softmax.path, weights, each, sink, softmax.hides[:, keys])
        return None


def _same(left: Tensor, right: Tensor) -> bool:
    """Bit by bit; what is not a number is not equal to itself."""
    if torch.equal(left, right):
        return True
    return bool(left.isnan().any()) and torch.equal(left.nan_to_num(2), right.nan_to_num(2))
