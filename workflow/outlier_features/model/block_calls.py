"""The calls inside a block: what each of its modules read and returned in one pass, and whether it mixes tokens."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from outlier_features.model.hooks import After, Before, hooks
from outlier_features.model.models import holds_experts
from outlier_features.model.stack import BlockCall
from outlier_features.model.tensors import first_tensor, map_tensors, same_values

Tensor = torch.Tensor

# How far a token's output may move when other tokens change and it does not depend on them, relative to its RMS. The
# order of additions at an expert depends on the tokens beside.
_STILL = {torch.float32: 1e-6, torch.bfloat16: 2e-3, torch.float16: 5e-4}
_STILL_ROUTED = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}


@dataclass(eq=False)
class Call:
    """One call of a module, by its name within the block, with copies of what it read and returned.

    number      of the module's calls in the whole pass
    shape       of the probe's token ids, (B, T)
    arguments   all that it was called with, of a module that may be a sublayer; else None
    quietly     runs modules again without their being recorded
    """

    name: str
    module: nn.Module
    number: int
    input: Tensor
    output: Tensor
    shape: torch.Size
    arguments: tuple[Any, Any] | None = None
    quietly: Callable[[Callable[[], Any]], Any] = field(default=lambda run: run(), repr=False)

    @property
    def plain(self) -> bool:
        """It multiplies by no matrix, and it does something."""
        return not any(multiplies(part) for part in self.module.modules()) and not same_values(self.input, self.output)

    @cached_property
    def mixing(self) -> "Mixing | None":
        """Whether its output at a token depends on other tokens; None where it cannot be run on changed ones."""
        try:
            return self._mixing()
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError):
            return None

    @torch.inference_mode()
    def _mixing(self) -> "Mixing | None":
        wrote = by_token(self.output, self.shape)
        if self.arguments is None or wrote is None or by_token(self.input, self.shape) is None:
            return None
        with _WatchSoftmax(self.shape[0]) as softmax:
            output = by_token(first_tensor(self.quietly(self._on_other_tokens)), self.shape)
        if output is None or output.shape != wrote.shape:
            return None
        before, after = wrote[:, -1].float(), output[:, -1].float()
        if not before.any():
            return None  # whatever it does, it says nothing here
        moved = (after - before).square().mean().sqrt() / before.square().mean().sqrt()
        routed = any(holds_experts(part) for part in self.module.modules())
        return Mixing(bool(moved > (_STILL_ROUTED if routed else _STILL)[self.output.dtype]), softmax.seen)

    def _on_other_tokens(self) -> Any:
        """Run the module again on what it read, but for other tokens before the last."""
        args, kwargs = map_tensors(self.arguments, self._with_other_tokens)
        return self.module(*args, **kwargs)

    def _with_other_tokens(self, value: Tensor) -> Tensor:
        changed = value.clone()
        rows = by_token(changed, self.shape) if value.is_floating_point() else None
        if rows is not None:
            rows[:, :-1] = rows.flip(0)[:, :-1].clone()  # those of the probe's other sequence
        return changed

    @torch.inference_mode()
    def is_norm(self) -> bool:
        """Whether it makes its output of one tensor, without a matrix."""
        if not self.plain:
            return False
        try:
            made = first_tensor(self.quietly(lambda: self.module(self.input.clone())))
        except (TypeError, ValueError, RuntimeError, IndexError):
            return False
        return made is not None and torch.allclose(made, self.output, rtol=1e-2, atol=1e-5)


@dataclass(frozen=True)
class Mixing:
    """What a module's output at a token depends on.

    tokens    the module's input at other tokens
    softmax   softmax weights of keys
    """

    tokens: bool
    softmax: bool


class _WatchSoftmax(TorchFunctionMode):
    """Sees a softmax over keys: of a tensor with heads beside queries and keys, apart from those of routers."""

    def __init__(self, batch: int):
        super().__init__()
        self._batch = batch
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention" or "multi_head_attention" in name:  # the latter in torch's own module
            self.seen = True
        elif "softmax" in name or name == "logsumexp":  # Reformer takes the exponential of what that leaves
            self.seen |= self._has_heads(result)
        return result

    def _has_heads(self, weights: Any) -> bool:
        return torch.is_tensor(weights) and (
            weights.ndim >= 4 or (weights.ndim == 3 and weights.shape[0] != self._batch)  # heads beside each other
        )


def by_token(value: Tensor | None, shape: torch.Size) -> Tensor | None:
    """A view (B, T, H) of a tensor (B, T, H), (T, B, H) or (B*T, H); None of another."""
    if value is None:
        return None
    if value.ndim == 3 and value.shape[:2] == shape:
        return value
    if value.ndim == 3 and value.shape[:2] == shape[::-1]:
        return value.transpose(0, 1)
    return value.view(*shape, -1) if value.ndim == 2 and len(value) == shape.numel() else None


def multiplies(module: nn.Module) -> bool:
    """Whether the module itself multiplies by a matrix of its own: a linear layer, or experts in whatever form."""
    return is_linear(module) or holds_experts(module) or _holds_matrices(module)


def _holds_matrices(module: nn.Module) -> bool:
    """Matrices under names of their own, and no linear layers inside (Dbrx)."""
    own = dict(module.named_parameters(recurse=False))
    return sum(parameter.ndim == 2 for parameter in own.values()) > 1 and not any(map(is_linear, module.children()))


def is_linear(module: nn.Module) -> bool:
    """A linear layer, also one of a class of its own (quantized ones): a module without others that has a matrix."""
    if isinstance(module, nn.Linear | Conv1D):
        return True
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, torch.Tensor)
        and weight.ndim == 2
        and not isinstance(module, nn.Embedding)
        and not any(module.children())
    )


def recorded_blocks(
    blocks: list[BlockCall], shape: torch.Size, describe: Callable[[BlockCall, list[Call]], None]
) -> AbstractContextManager[None]:
    """Record the calls inside each block, in the order in which they end, the block itself last; then `describe` them.

    `shape` is that of the probe's token ids. One block's calls are held at a time: they are every tensor in it.
    """
    recorder = _CallRecorder(blocks, shape, describe)
    return hooks(recorder.before, recorder.after)


class _CallRecorder:
    def __init__(self, blocks: list[BlockCall], shape: torch.Size, describe: Callable[[BlockCall, list[Call]], None]):
        self._describe, self._shape = describe, shape
        self._calls: list[Call] = []
        self._running: BlockCall | None = None
        self._replaying = False
        self._numbers: Counter[nn.Module] = Counter()
        unique = dict.fromkeys(block.module for block in blocks)
        waiting = {(block.module, block.call): block for block in blocks}
        counts: Counter[nn.Module] = Counter()

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self._replaying:
                self._running = waiting.get((module, counts[module]))
                counts[module] += 1

        self.before: list[Before] = [(module, begin) for module in unique]
        self.after: list[After] = []
        for module, name in {part: name for block in unique for name, part in block.named_modules()}.items():
            self._watch(module, name)

    def _watch(self, module: nn.Module, name: str) -> None:
        reads: list[tuple[int, Tensor | None, tuple[Any, Any] | None]] = []
        may_be_sublayer = not is_linear(module) and (
            name.count(".") == 0 or any(multiplies(part) for part in module.modules())
        )

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self._replaying:
                copies = _copies((args, kwargs))
                read = first_tensor(copies)
                reads.append((self._numbers[module], read, copies if may_be_sublayer else None))
                self._numbers[module] += 1

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._replaying:
                return
            number, read, arguments = reads.pop()
            block, returned = self._running, first_tensor(output)
            if block is None:
                return  # a module that the block shares with the rest of the model
            here = self._name(block, module)
            if here is not None and read is not None and returned is not None:
                self._calls.append(
                    Call(here, module, number, read, returned.clone(), self._shape, arguments, self._quietly)
                )
            if module is block.module:
                self._describe(block, self._calls)
                self._calls, self._running = [], None

        self.before.append((module, before))
        self.after.append((module, after))

    def _name(self, block: BlockCall, module: nn.Module) -> str | None:
        return next((name for name, one in block.module.named_modules() if one is module), None)

    def _quietly(self, run: Callable[[], Any]) -> Any:
        self._replaying = True
        try:
            return run()
        finally:
            self._replaying = False


def _copies(value: Any) -> Any:
    """Nested arguments with each tensor copied, one that stands twice once."""
    copies: dict[int, Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.clone()
        return copies[id(tensor)]

    return map_tensors(value, copy)
