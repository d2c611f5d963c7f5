"""What a norm does to a vector that is part of what it reads."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from outlier_features.model.on_demand import require_weights
from outlier_features.norms.norm_forms import NormCall

Tensor = torch.Tensor


@dataclass(frozen=True)
class Scaling:
    """A norm without its division: the mean is taken off first or not, times the gain.

    gain   (H,) float64 on the CPU, and `bias` likewise or None
    """

    centres: bool
    gain: Tensor
    bias: Tensor | None = None

    def of(self, directions: Tensor) -> Tensor:
        """Directions float64 (n, H)."""
        if self.centres:
            directions = directions - directions.mean(dim=1, keepdim=True)
        return directions * self.gain

    def before(self, readers: Tensor) -> Tensor:
        """What reads of the norm's input what `readers`, float64 (n, H), read of its output: `readers @ of(x)` is
        `before(readers) @ x`."""
        gained = readers * self.gain.to(readers)
        return gained - gained.mean(dim=1, keepdim=True) if self.centres else gained


@dataclass(frozen=True)
class Norm:
    """A norm with its division, which is measured: no name of an epsilon need be known.

    module   a copy of the model's in float32 on the CPU
    """

    scaling: Scaling
    module: nn.Module

    @classmethod
    def of(cls, call: NormCall | None) -> "Norm | None":
        """None where it is not known what the module does, or it is no norm."""
        scaling = None if call is None else scaling_of(call)
        if call is None or scaling is None:
            return None
        return cls(scaling, copy.deepcopy(call.module).cpu().float())

    def factor(self, read: Tensor) -> Tensor:
        """1 / RMS at each position of what it reads (T, H), float64 (T, 1) on the CPU, epsilon included: the output
        less the bias is so many times `scaling.of` it."""
        output = self.module(read.cpu().float()).cpu().double()
        if self.scaling.bias is not None:
            output = output - self.scaling.bias
        whole = self.scaling.of(read.cpu().double())
        squares = whole.square().sum(dim=1, keepdim=True)
        found = (output * whole).sum(dim=1, keepdim=True) / squares
        return torch.where(squares > 0, found, 0.0)


def scaling_of(call: NormCall) -> Scaling | None:
    """None where it is not known what the module of a call does, or it is no norm."""
    require_weights(call.module)
    if not call.fits:
        return None
    forms = call.forms()
    if len(forms) != 1:
        return None
    (form,) = forms
    width = call.read.shape[-1]
    values: dict[str, Any] = {name: value.detach().cpu().double() for name, value in call.parameters.items()}
    gain = values[form.gain] if form.gain else torch.zeros(width).double()
    return Scaling(form.kind == "layer", form.offset + gain, values.get(form.bias))
