"""The stack of a model: which calls of which modules are its blocks, in the order in which the residual stream runs.

No list of architectures and no number in a config says so, but the run: of the modules that lie in lists, those whose
calls read one another's output, bit by bit, and hold the most parameters. A block that is called several times (ALBERT,
recurrent depth) is a block for each call. Towers that do not run on text (vision, audio) are not looked at.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from outlier_features.errors import InputError
from outlier_features.model.hooks import After, Before, hooks
from outlier_features.model.tensors import first_tensor, same_values

Tensor = torch.Tensor


@dataclass(frozen=True)
class BlockCall:
    """A call of the block at `path`, the number `call` of its calls in a pass.

    follows   it reads what the block before it wrote; the first does not, nor one that begins another round
    """

    path: str
    module: nn.Module
    call: int
    follows: bool


@dataclass(frozen=True)
class Stack:
    """The blocks in order.

    calls   how often each module of the model runs in a pass
    width   dimensions of the residual stream
    """

    blocks: list[BlockCall]
    calls: Mapping[nn.Module, int]
    width: int

    def __len__(self) -> int:
        return len(self.blocks)


@dataclass(eq=False)
class _ListedCall:
    path: str
    module: nn.Module
    number: int
    read: Tensor | None
    wrote: Tensor | None = None


def find_stack(model: nn.Module, run: Callable[[], Any], expected: int | None, within: str = "") -> Stack:
    """The stack of what `run` runs of the model.

    expected   how many blocks the config says there are: it decides only between lists in one another
    within     the path of the module that holds it

    Raises `InputError` where no modules of a list read each other's output.
    """
    listed = [path for path, _ in model.named_modules() if _in_a_list(model, path)]
    inside = [path for path in listed if f"{path}.".startswith(f"{within}." if within else "")]
    recorded, calls = _recorded(model, inside, run)
    chains = [chain for group in _by_list(model, recorded).values() if (chain := _chain(group))]
    width = {call.path: call.read.shape[-1] for call in recorded if call.read is not None}
    if not chains:
        config = getattr(model, "config", None)
        raise InputError(
            f"{getattr(config, 'model_type', 'model')}: found no list of modules of {type(model).__name__} of which "
            "each reads what the one before it returns, expected the model's blocks"
        )
    blocks = max(chains, key=lambda chain: _weight(chain, expected))
    return Stack(blocks, calls, width[blocks[0].path])


def named_stack(model: nn.Module, run: Callable[[], Any], paths: Sequence[str]) -> Stack:
    """The stack of these modules, in the order in which `run` calls them, whether or not they read one another.

    Raises `InputError` where one does not run, or reads or returns no tensor.
    """
    recorded, calls = _recorded(model, paths, run)
    for path in paths:
        its = [call for call in recorded if call.path == path]
        if not its or any(call.read is None or call.wrote is None for call in its):
            found = "reads or returns no tensor" if its else "does not run"
            raise InputError(f"blocks: {path} of {type(model).__name__} {found}, expected a block")
    follows = [False, *(_reads(call, before) for before, call in pairwise(recorded))]
    blocks = [BlockCall(call.path, call.module, call.number, one) for call, one in zip(recorded, follows, strict=True)]
    read = recorded[0].read
    assert read is not None
    return Stack(blocks, calls, read.shape[-1])


def _recorded(
    model: nn.Module, paths: Sequence[str], run: Callable[[], Any]
) -> tuple[list[_ListedCall], dict[nn.Module, int]]:
    """The calls of the modules at `paths` in what `run` runs, and how often each module of the model runs."""
    calls: Counter[nn.Module] = Counter()
    recorded: list[_ListedCall] = []
    before: list[Before] = [(module, lambda module, args, kwargs: calls.update([module])) for module in model.modules()]
    after: list[After] = []
    for path in paths:
        module = model.get_submodule(path)
        begin, end = _recording(path, recorded)
        before.append((module, begin))
        after.append((module, end))
    with hooks(before, after), torch.inference_mode():
        run()
    return recorded, dict(calls)


def _in_a_list(model: nn.Module, path: str) -> bool:
    parent = model.get_submodule(path.rpartition(".")[0]) if path else None
    return isinstance(parent, nn.ModuleList | nn.ModuleDict | nn.Sequential)


def _recording(path: str, recorded: list[_ListedCall]) -> tuple[Callable[..., None], Callable[..., None]]:
    """What the module at `path` calls before and after it runs, so that its calls are `recorded`."""
    running: list[_ListedCall] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        number = sum(call.module is module for call in recorded)
        call = _ListedCall(path, module, number, _copy((args, kwargs)))
        recorded.append(call)
        running.append(call)

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        running.pop().wrote = _copy(output)

    return before, after


def _copy(value: Any) -> Tensor | None:
    tensor = first_tensor(value)
    return None if tensor is None else tensor.clone()


def _by_list(model: nn.Module, recorded: list[_ListedCall]) -> dict[tuple[type, str], list[_ListedCall]]:
    """The calls by the class that owns their list and its name in there: two stacks of one class are one list."""
    groups: dict[tuple[type, str], list[_ListedCall]] = defaultdict(list)
    for call in recorded:
        owner, name = call.path.rpartition(".")[0], "*"
        while _in_a_list(model, owner):
            owner, name = owner.rpartition(".")[0], f"*.{name}"
        owner, _, attribute = owner.rpartition(".")
        groups[type(model.get_submodule(owner)), f"{attribute}.{name}"].append(call)
    return groups


def _chain(calls: list[_ListedCall]) -> list[BlockCall]:
    """The calls as blocks, if each reads what the one before wrote or begins its list; else none."""
    blocks, before = [], None
    for call in calls:
        follows = before is not None and _reads(call, before)
        if call.wrote is None or call.read is None or not (follows or _begins(call, before)):
            return []
        blocks.append(BlockCall(call.path, call.module, call.number, follows))
        before = call
    return blocks


def _reads(call: _ListedCall, before: _ListedCall) -> bool:
    return call.read is not None and before.wrote is not None and same_values(call.read, before.wrote)


def _begins(call: _ListedCall, before: _ListedCall | None) -> bool:
    return before is None or re.fullmatch(r"0+", call.path.rpartition(".")[2]) is not None


def _weight(chain: list[BlockCall], expected: int | None) -> tuple[int, bool, int]:
    modules = {block.module for block in chain}
    parameters = {id(p): p.numel() for module in modules for p in module.parameters()}
    return sum(parameters.values()), len(chain) == expected, -chain[0].path.count(".")
