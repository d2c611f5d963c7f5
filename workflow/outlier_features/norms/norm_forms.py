"""What norms compute: found by that, not by their names.

A module is a norm if its output is its normalised input, times a gain, plus a bias. Which of its parameters is the
gain, and whether it multiplies by w or by 1 + w (Gemma), is decided on a probe that only one of these explains.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

import torch
from torch import nn

from outlier_features.model.bases import SITES
from outlier_features.model.hooks import hooks
from outlier_features.model.probed import Probed
from outlier_features.model.sites import Block
from outlier_features.model.tensors import first_tensor

Tensor = torch.Tensor

# Relative to a value's own terms. The probe's mean square is far above any epsilon, so that it does not show.
TOLERANCE = 1e-5
_PROBE_SCALE, _PROBE_OFFSET = 64.0, 16.0
_OFFSETS = (0, 1)  # the gain is w, or 1 + w


@dataclass(frozen=True)
class NormCall:
    """A call of a module that may be a norm: `read`, among its arguments, has the shape of what it returned."""

    module: nn.Module
    read: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def parameters(self) -> dict[str, Tensor]:
        return dict(self.module.named_parameters(recurse=False))

    def again(self, value: Tensor) -> Tensor:
        """The output, float64, for `value` in place of what was read, computed in float32."""

        def put(argument: Any) -> Any:
            if argument is self.read:
                return value
            return argument.float() if torch.is_tensor(argument) and argument.is_floating_point() else argument

        module = copy.deepcopy(self.module).float()
        output = module(*map(put, self.args), **{key: put(argument) for key, argument in self.kwargs.items()})
        return _exact(first_tensor(output))

    @cached_property
    def probe(self) -> Tensor:
        """Random values whose mean is not 0, float32, of the shape and on the device of what was read."""
        values = torch.randn(self.read.shape, generator=torch.Generator().manual_seed(0))
        return (values * _PROBE_SCALE + _PROBE_OFFSET).to(self.read.device)

    @cached_property
    def output(self) -> Tensor:
        """For the probe."""
        return self.again(self.probe)

    @property
    def fits(self) -> bool:
        """Whether its parameters have the last dims of what was read."""
        return all(self.read.shape[-value.ndim :] == value.shape for value in self.parameters.values())

    def forms(self) -> "list[Form]":
        """Every form that explains the output."""
        return list(_forms(self.probe, self.output, self.parameters))

    def ignores_scale(self) -> bool:
        """Whether the output stays the same for an input of another scale, and not for another input."""
        output = self.output
        allowed = 10 * TOLERANCE * (output.abs() + output.square().mean().sqrt())
        scaled, other = (self.again(value) for value in (4 * self.probe, self.probe.flip(-1)))
        return bool(((scaled - output).abs() <= allowed).all()) and bool(((other - output).abs() > allowed).any())


@torch.inference_mode()
def norm_calls(loaded: Probed) -> dict[str, NormCall]:
    """The calls that may be norms' on a few probe tokens, by path, in the model's order."""
    calls: dict[nn.Module, NormCall] = {}

    def watch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        read, returned = first_tensor((args, kwargs)), first_tensor(output)
        if read is not None and returned is not None and read.shape == returned.shape and read.numel():
            calls[module] = NormCall(module, read, args, kwargs)

    with hooks(after=[(module, watch) for module in loaded.model.modules() if _may_be_norm(module)]):
        loaded.probe()
    return {path: calls[module] for path, module in loaded.model.named_modules() if module in calls}


def _may_be_norm(module: nn.Module) -> bool:
    own, every = (len(list(module.parameters(recurse=recurse))) for recurse in (False, True))
    return own == every <= 2 and (own > 0 or not any(module.children()))


@dataclass(frozen=True)
class Form:
    """What a norm computes: its kind, the names of its gain and bias, and what is added to the gain."""

    kind: str
    gain: str
    bias: str
    offset: int


def _forms(probe: Tensor, output: Tensor, parameters: Mapping[str, Tensor]) -> Iterator[Form]:
    exact = {name: _exact(value) for name, value in parameters.items()} | {"": torch.zeros(()).double()}
    roles = [(*order, "", "")[:2] for order in permutations(parameters)]
    for kind, normed in _normalised(_exact(probe)).items():
        for gain, bias in roles:
            for offset in _OFFSETS if gain else (1,):
                expected = normed * (offset + exact[gain]) + exact[bias]
                size = (offset + exact[gain].abs()) * (1 + normed.abs()) + exact[bias].abs()
                if bool(((output - expected).abs() <= TOLERANCE * size).all()):
                    yield Form(kind, gain, bias, offset)


def _normalised(x: Tensor) -> dict[str, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    return {kind: y * y.square().mean(-1, keepdim=True).rsqrt() for kind, y in (("rms", x), ("layer", centred))}


def sites_of_modules(blocks: list[Block]) -> dict[nn.Module, tuple[str, ...]]:
    """The sites that are the output of each module; the norm that closes a post-LN block makes its `resid_post`."""
    made: dict[nn.Module, set[str]] = {}
    for block in blocks:
        outputs = [(site.module, name) for name, site in block.sites.items() if site.side == "out"]
        for module, name in [*outputs, *([(block.closing_norm, "resid_post")] if block.closing_norm else [])]:
            made.setdefault(module, set()).add(name)
    return {module: tuple(sorted(names, key=SITES.index)) for module, names in made.items()}


def _exact(value: Tensor) -> Tensor:
    return value.detach().cpu().double()
