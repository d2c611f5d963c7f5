"""A module with the inputs that its caller hands over, of which nothing is known but that there is one a sequence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from outlier_features.errors import InputError
from outlier_features.model.hooks import hooks
from outlier_features.model.stack import Stack, find_stack, named_stack
from outlier_features.model.tensors import first_tensor, map_tensors

Tensor = torch.Tensor


@dataclass(frozen=True)
class Inputs:
    """What a module's `forward` is called with: positional and named arguments, each tensor with a row a sequence."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @cached_property
    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        map_tensors([list(self.args), dict(self.kwargs)], lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return found

    def __len__(self) -> int:
        return len(self.tensors[0])

    def require_rows(self) -> None:
        """Raise `InputError` where there is no tensor, or not all have as many rows."""
        sizes = [tensor.shape[0] if tensor.ndim else 0 for tensor in self.tensors]
        if not sizes or min(sizes) != max(sizes) or not sizes[0]:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in self.tensors) or "none"
            raise InputError(f"inputs: found tensors of shape {shapes}, expected some, with a row for each sequence")

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        return Inputs(tuple(map_tensors(list(self.args), change)), map_tensors(dict(self.kwargs), change))

    def rows(self, chosen: slice | list[int]) -> "Inputs":
        return self.changed(lambda tensor: tensor[chosen])

    def run(self, module: nn.Module) -> Any:
        return module(*self.args, **self.kwargs)


@dataclass(frozen=True)
class ModuleInHand:
    """A module in evaluation mode whose blocks were found: `Probed`.

    inputs   of all sequences, on its device
    """

    model: nn.Module
    inputs: Inputs
    device: torch.device
    dtype: torch.dtype
    stack: Stack
    probe_shape: torch.Size
    probe_inputs: Inputs = field(repr=False)
    part: None = None

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs, blocks: str | Sequence[str] | None) -> "ModuleInHand":
        """blocks   the path of the list that holds the blocks, or their paths; None: they are found, see `find_stack`

        Raises `InputError` where there is none, or blocks do not read (sequences, tokens, dims).
        """
        parameter = next((one for one in model.parameters() if one.is_floating_point()), None)
        if parameter is None:
            raise InputError(f"model: found {type(model).__name__} without parameters, expected a model with blocks")
        inputs.require_rows()
        inputs = inputs.changed(lambda tensor: tensor.to(parameter.device))
        probe = _probe(inputs)
        _require_that_it_runs(model, probe)
        stack = _stack(model, probe, blocks)
        shape = _tokens(model, probe, stack)
        return cls(model, inputs, parameter.device, parameter.dtype, stack, shape, probe)

    @property
    def config(self) -> Any:
        """What `sites` ask for the names of activation functions."""
        return getattr(self.model, "config", None)

    def probe(self, **options: Any) -> Any:
        """Run the first two sequences that differ."""
        return self.probe_inputs.run(self.model)


def _probe(inputs: Inputs) -> Inputs:
    """Two sequences that differ; where all are the same, or there is one, the second is the first turned round."""

    def differs(row: int) -> bool:
        return any(not torch.equal(tensor[0], tensor[row]) for tensor in inputs.tensors)

    other = next((row for row in range(1, len(inputs)) if differs(row)), None)
    if other is not None:
        return inputs.rows([0, other])
    return inputs.changed(lambda tensor: torch.stack([tensor[0], tensor[0].flip(-1) if tensor[0].ndim else tensor[0]]))


@torch.inference_mode()
def _require_that_it_runs(model: nn.Module, probe: Inputs) -> None:
    try:
        probe.run(model)
    except Exception as error:  # whatever the caller's code raises
        said = str(error).strip().partition("\n")[0] or "no reason"
        raise InputError(
            f"inputs: {type(model).__name__} does not run on the inputs, found {type(error).__name__}: {said}"
        ) from error


def _stack(model: nn.Module, probe: Inputs, blocks: str | Sequence[str] | None) -> Stack:
    run = lambda: probe.run(model)  # noqa: E731
    if blocks is None:
        try:
            return find_stack(model, run, None)
        except InputError as error:
            raise InputError(error.found, "`blocks` names them") from error
    modules = dict(model.named_modules())
    paths = list(blocks)
    if isinstance(blocks, str):
        paths = [path for path in modules if path.rpartition(".")[0] == blocks and path]
    unknown = [path for path in paths if path not in modules]
    if unknown or not paths:
        raise InputError(
            f"blocks: found {unknown[0] if unknown else blocks!r}, expected the path of a list of modules of "
            f"{type(model).__name__}, or paths of modules"
        )
    return named_stack(model, run, paths)


@torch.inference_mode()
def _tokens(model: nn.Module, probe: Inputs, stack: Stack) -> torch.Size:
    """(B, T) of the probe, as the first block reads it."""
    shapes: list[torch.Size] = []
    first = stack.blocks[0]

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        shapes.append(first_tensor((args, kwargs)).shape)

    with hooks(before=[(first.module, look)]):
        probe.run(model)
    shape = shapes[first.call]
    if len(shape) == 3 and len(probe) in shape[:2]:
        return torch.Size(shape[:2] if shape[0] == len(probe) else (shape[1], shape[0]))
    raise InputError(
        f"blocks: {first.path} reads a tensor of shape {list(shape)} for {len(probe)} sequences, expected (sequences, "
        "tokens, dims)"
    )
