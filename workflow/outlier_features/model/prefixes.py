"""Passes that begin at a block: what the block before it returned is kept from a whole pass, and not made again.

Of a model's own code around its blocks nothing is known, so it runs as ever, but the blocks before the first wanted one
return at once: each of them what the last of them returned in the whole pass. Some models take more from their earlier
blocks than that (keys and values that later ones share, sums over all of them); whether one does is tried.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from outlier_features.model.hooks import hooks, returning
from outlier_features.model.models import LoadedModel, probe_ids
from outlier_features.model.stack import Stack
from outlier_features.model.tensors import map_tensors, parts_of, same_values, unknown_parts
from outlier_features.model.verify_sites import TOLERANCE

Tensor = torch.Tensor
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, AssertionError)


class PassEnded(BaseException):  # no Exception, which a model's own code may catch
    """Raised in a hook where nothing of the rest of a pass is wanted; `suppress` goes around the pass."""


def after_blocks(stack: Stack, receive: Callable[[int, Any], None]) -> AbstractContextManager[None]:
    """During one pass, hand the number of each block and what it returned to `receive`, also of those that are kept."""
    numbers = {(block.module, block.call): number for number, block in enumerate(stack.blocks)}
    calls: Counter[nn.Module] = Counter()

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        number = numbers.get((module, calls[module]))
        calls[module] += 1
        if number is not None:
            receive(number, output)

    return hooks(after=[(module, after) for module in dict.fromkeys(block.module for block in stack.blocks)])


@dataclass(frozen=True, eq=False)
class Prefix:
    """What is kept of the blocks before block `start`, from a pass over ids of `shape` (B, T); of none at 0.

    output    what block `start - 1` returned, (B, T, d_model) first
    encoded   of a decoder, what its encoder returned
    """

    start: int
    shape: torch.Size
    output: Any = None
    encoded: Any = None


class Prefixes:
    """What passes of a model may begin with.

    prefixes = Prefixes(loaded)
    start = prefixes.start(7)
    with prefixes.keeping([start], ids) as kept:
        loaded.base(ids)
    with prefixes.begun(kept[start]):
        loaded.base(ids)
    """

    def __init__(self, loaded: LoadedModel):
        self._loaded, self._stack = loaded, loaded.stack
        self._encoder = loaded.model.get_encoder() if loaded.part == "decoder" else None
        self._starts: dict[int, int] = {0: 0}
        self._repeats: dict[int, bool] = {}

    def start(self, wanted: int) -> int:
        """`wanted`, if a pass that begins at that block is the whole pass, bit by bit, on probe tokens; else 0."""
        if wanted not in self._starts:
            problem = self._problem(wanted)
            if problem:
                print(f"passes from block {wanted} on: all blocks are run: {problem}", file=sys.stderr)
            self._starts[wanted] = 0 if problem else wanted
        return self._starts[wanted]

    def can_repeat(self, start: int) -> bool:
        """Whether a pass that begins there, over the same tokens twice, gives both rows what one alone gives."""
        if start not in self._repeats:
            ids, kept, expected = self._probe[0]
            found = self._tried(ids, kept[start], times=2)
            allowed = TOLERANCE[self._loaded.dtype] * (expected.abs() + expected.square().mean(-1, keepdim=True).sqrt())
            self._repeats[start] = not isinstance(found, str) and bool(((found - expected).abs() <= allowed).all())
        return self._repeats[start]

    def first_with(self, parameter: nn.Parameter) -> int:
        """The first block that a weight lies in."""
        return next(
            number
            for number, block in enumerate(self._stack.blocks)
            if any(own is parameter for own in block.module.parameters())
        )

    def past(self, start: int) -> Mapping[nn.Module, int]:
        """How often the modules inside of blocks were called before block `start`, of those that several share."""
        return self._past.get(start, {})

    @contextmanager
    def keeping(self, starts: Collection[int], ids: Tensor) -> Iterator[dict[int, Prefix]]:
        """During one pass over `ids` (B, T), keep what passes from each of `starts` on begin with."""
        kept = {0: Prefix(0, ids.shape)}
        encoded: Any = None

        def keep_encoded(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            nonlocal encoded
            encoded = map_tensors(output, torch.clone)

        def keep(number: int, output: Any) -> None:
            if number + 1 in starts:
                kept[number + 1] = Prefix(number + 1, ids.shape, map_tensors(output, torch.clone), encoded)

        encoder = [(self._encoder, keep_encoded)] if self._encoder is not None else []
        with hooks(after=encoder), after_blocks(self._stack, keep):
            yield kept

    @contextmanager
    def begun(self, prefix: Prefix, times: int = 1) -> Iterator[None]:
        """One pass over the same ids so many `times` under one another, (times * B, T), begins at `prefix.start`."""
        skipped: dict[nn.Module, set[int]] = defaultdict(set)
        for block in self._stack.blocks[: prefix.start]:
            skipped[block.module].add(block.call)
        with ExitStack() as stack:
            for module, calls in skipped.items():
                stack.enter_context(returning(module, calls, lambda: _repeated(prefix.output, prefix.shape, times)))
            if prefix.encoded is not None:
                encoded = lambda: _repeated(prefix.encoded, prefix.shape, times)  # noqa: E731
                stack.enter_context(returning(self._encoder, {0}, encoded))
            yield

    @torch.inference_mode()
    def step(self, prefix: Prefix, ids: Tensor, run: Callable[[], Any]) -> Prefix | None:
        """`run` runs a pass over `ids` from `prefix` on, which ends after one block; what the next one begins with.

        The last block's goes on to the end of the model, and None follows.
        """

        def end(number: int, _: Any) -> None:
            if number == prefix.start < len(self._stack) - 1:
                raise PassEnded

        following = prefix.start + 1
        with (
            suppress(PassEnded),
            self.begun(prefix),
            self.keeping([following], ids) as kept,
            after_blocks(self._stack, end),
        ):
            run()
        if following == len(self._stack):
            return None
        return replace(kept[following], output=map_tensors(kept[following].output, torch.Tensor.contiguous))

    def example(self, start: int) -> Prefix:
        """What a pass over one of the probe's sequences begins with at a block."""
        return self._probe[0][1][start]

    def no_steps(self) -> str | None:
        """Why passes that run one block at a time are not the whole pass, bit by bit; None if they are.

        Each block in turn runs on both of the probe's sequences, from what the block before it returned in a whole
        pass: so nothing is read more than once, however many blocks there are.
        """
        if self._encoder is not None:
            return "its encoder runs before each pass of its decoder"
        for number in range(len(self._stack)):
            for ids, kept, expected in self._probe:
                if problem := self._no_step(kept, ids, number, expected):
                    return f"block {number}: {problem}"
        return None

    def _no_step(self, kept: dict[int, Prefix], ids: Tensor, number: int, expected: Tensor) -> str | None:
        before, after = kept[number].output, kept[number + 1].output
        if unknown := next(unknown_parts(after), None):
            return f"it returns a {type(unknown).__name__}, which is not copied"
        if any(not isinstance(part, Tensor) for part in parts_of(after) if part is not None):
            return "it returns a number beside its tensors"
        states: list[Tensor] = []
        start = replace(kept[number], output=map_tensors(before, torch.Tensor.contiguous))
        try:
            found = self.step(start, ids, lambda: states.append(self._loaded.base(ids)[0]))
        except _FAILURES as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return f"the model raises {type(error).__name__}: {error}"
        pairs = list(zip(parts_of(found.output), parts_of(after), strict=True)) if found else [(states[-1], expected)]
        same = all(one is other is None or same_values(one, other) for one, other in pairs)
        return None if same else "it returns other values when it begins a pass"

    def _problem(self, start: int) -> str | None:
        """Why a pass cannot begin at a block.

        Both sequences in turn: whatever a model keeps to itself from one pass to the next is of other tokens then.
        """
        for ids, kept, expected in self._probe:
            if unknown := next(unknown_parts((kept[start].output, kept[start].encoded)), None):
                return f"block {start - 1} returns a {type(unknown).__name__}, which is not copied"
            found = self._tried(ids, kept[start])
            if isinstance(found, str):
                return found
            if found.shape != expected.shape or not same_values(found, expected):
                return "the last hidden states are others"
        return None

    def _tried(self, ids: Tensor, prefix: Prefix, times: int = 1) -> Tensor | str:
        """Last hidden states, or why the model does not run."""
        try:
            return self._states(ids, prefix, times)
        except _FAILURES as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return f"the model raises {type(error).__name__}: {error}"

    @torch.inference_mode()
    def _states(self, ids: Tensor, prefix: Prefix, times: int = 1) -> Tensor:
        with self.begun(prefix, times):
            states: Tensor = self._loaded.base(ids.repeat(times, 1))[0]
        return states

    @cached_property
    def _probe(self) -> list[tuple[Tensor, dict[int, Prefix], Tensor]]:
        """Ids of one sequence, what a pass over them may begin with at each block, and its last hidden states."""
        passes = []
        for ids in probe_ids(self._loaded.model).split(1):
            with self.keeping(range(len(self._stack) + 1), ids) as kept:
                passes.append((ids, kept, self._states(ids, Prefix(0, ids.shape))))
        return passes

    @cached_property
    def _past(self) -> dict[int, dict[nn.Module, int]]:
        holders = Counter(module for block in self._stack.blocks for module in block.module.modules())
        blocks = {block.module for block in self._stack.blocks}  # these are called in a pass from a later block as well
        shared = [module for module, blocks_with in holders.items() if blocks_with > 1 and module not in blocks]
        calls: Counter[nn.Module] = Counter()
        past: dict[int, dict[nn.Module, int]] = {}
        if shared:
            ids = probe_ids(self._loaded.model)[:1]
            with (
                hooks(before=[(module, lambda module, *_: calls.update([module])) for module in shared]),
                after_blocks(self._stack, lambda number, _: past.update({number + 1: dict(calls)})),
            ):
                self._states(ids, Prefix(0, ids.shape))
        return past


def _repeated(kept: Any, shape: torch.Size, times: int) -> Any:
    """A copy, which the model may change in place; tensors with a row for each sequence have all rows so many times.

    shape   (B, T) of the ids that it was made from
    """
    batch, length = shape

    def repeat(tensor: Tensor) -> Tensor:
        if times == 1 or not tensor.ndim:
            return tensor.clone()
        time_major = tensor.ndim > 2 and tensor.shape[:2] == (length, batch) and length != batch
        axis = 1 if time_major else 0
        if tensor.shape[axis] % batch:
            return tensor.clone()  # it has no rows for sequences
        return tensor.repeat([times if n == axis else 1 for n in range(tensor.ndim)])

    return map_tensors(kept, repeat)
