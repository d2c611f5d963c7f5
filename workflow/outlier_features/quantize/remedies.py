"""What is tried against the cost of outliers: something left exact, or input and weight changed before the rounding.

Whatever is done, input times weight is what it was but for the rounding: `(X / s) (W s)`, `(X R) (R^T W)`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Protocol

import numpy as np
import torch

from outlier_features.channels.linear_layers import LinearLayer
from outlier_features.files.quantization_columns import (
    ALPHAS,
    CLIP,
    EXACT_DIMS,
    EXACT_POSITIONS,
    EXACT_RANDOM,
    EXACT_SUPER_WEIGHT,
    HADAMARD,
    NONE,
    SMOOTH,
)
from outlier_features.quantize.schemes import LLM_INT8_THRESHOLD, Scheme, Seen, WeightScheme, largest_abs
from outlier_features.wording import count

Tensor = torch.Tensor
QUANTILES = (0.99, 0.999)


@dataclass(frozen=True, eq=False)
class Treatment:
    """A remedy for a layer's input.

    exact      bool (width,), columns that are not rounded, nor are their rows of the weight
    weights    by layer's name, the (row, column) of weights that are not rounded
    positions  tokens are not rounded, see `exact_tokens`
    divisor    (width,), what input channels are divided by, and the weight's multiplied
    rotation   of both
    quantile   of the abs(x) that share a scale, which the scale is made of instead of the largest
    """

    remedy: str
    setting: str | None = None
    exact: Tensor | None = None
    weights: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    positions: bool = False
    divisor: Tensor | None = None
    rotation: "Rotation | None" = None
    quantile: float | None = None

    @property
    def changes_input(self) -> bool:
        """It is more than another weight."""
        return not self.weights

    @property
    def own_weight(self) -> bool:
        """The weight that is rounded, or how, is not that of no remedy."""
        return bool(self.weights) or any(one is not None for one in (self.exact, self.divisor, self.rotation))

    def suits(self, scheme: Scheme) -> bool:
        """Of a rotated or clipped input and of other tokens the static scale is not known before the pass; and a
        quantile of a few values is their largest."""
        if scheme.shares == "static":
            return self.rotation is None and self.quantile is None and not self.positions
        return self.quantile is None or not isinstance(scheme.shares, int)

    def input(self, x: Tensor) -> Tensor:
        """What is rounded, of x (n, width)."""
        if self.divisor is not None:
            return x / self.divisor
        return self.rotation(x) if self.rotation else x

    def weight(self, matrix: Tensor) -> Tensor:
        """What is rounded, of a weight (out, width)."""
        if self.divisor is not None:
            return matrix * self.divisor
        return self.rotation(matrix) if self.rotation else matrix

    def seen(self, changed: Tensor, absmax: Tensor, rows: Tensor | None, schemes: Sequence[Scheme]) -> Seen:
        """Of the changed input of a sequence (n, width), what the schemes ask for.

        absmax   largest abs(x) of each channel over the run, (width,)
        rows     bool (n,), tokens that `positions` leaves exact
        """
        asked = {scheme.shares for scheme in schemes}
        static = float(self._inner(self.input(absmax[None]), None).max()) if "static" in asked else None
        inner = self._inner(changed, rows)
        dynamic = float(self._largest(inner.flatten())) if "dynamic" in asked else None
        kept = None
        if any(scheme.exact for scheme in schemes):
            kept = (inner.abs().amax(0, keepdim=True) < LLM_INT8_THRESHOLD).to(inner.dtype)
        return Seen(static, dynamic, kept)

    def rounded(self, scheme: Scheme, changed: Tensor, seen: Seen, rows: Tensor | None = None) -> Tensor:
        """The changed input, rounded, in a new tensor; `rows` as in `seen`."""
        inner = self._inner(changed, rows)
        found = scheme(inner, seen, self._largest)
        return found if inner is changed else found.add_(changed - inner)

    def rounded_weight(self, scheme: WeightScheme, changed: Tensor, layer: str) -> Tensor:
        """The changed weight (out, width) of a layer, rounded, in a new tensor."""
        inner = self._inner(changed, None)
        if places := self.weights.get(layer):
            inner = inner.clone()
            inner[tuple(torch.tensor(places).T)] = 0
        found = scheme(inner)
        return found if inner is changed else found.add_(changed - inner)

    def exact_share(self, rows: float) -> float:
        """Of the input's values.

        rows   share of the tokens that `positions` leaves exact
        """
        if self.positions:
            return rows
        return float(self.exact.double().mean()) if self.exact is not None else 0.0

    def _inner(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """With what is exact at zero, where it counts for no scale."""
        if self.exact is not None:
            return x * ~self.exact
        return x * ~rows[:, None] if self.positions and rows is not None else x

    def _largest(self, x: Tensor) -> Tensor:
        if self.quantile is None:
            return largest_abs(x)
        above = x.shape[-1] - ceil(self.quantile * x.shape[-1]) + 1
        return x.abs().topk(above, -1).values[..., -1:]


class Rotation:
    """By a normalised Hadamard matrix, in blocks of the largest power of two that divides the width; random signs."""

    def __init__(self, width: int, seed: int, device: torch.device):
        size = width & -width
        self._signs = torch.from_numpy(np.random.default_rng([seed, width]).choice([-1.0, 1.0], width)).to(device)
        self._signs = self._signs.to(torch.float32)
        # As a product of two small ones, H(ab) = H(a) x H(b), which costs a + b instead of a b.
        inner = 1 << ((size.bit_length() - 1) // 2)
        self._left, self._right = (_hadamard(n).to(device) for n in (size // inner, inner))

    def __call__(self, x: Tensor) -> Tensor:
        """x (n, width) R."""
        blocks = (x * self._signs).unflatten(-1, (-1, len(self._left), len(self._right)))
        return (self._left @ (blocks @ self._right)).flatten(-3)


def _hadamard(size: int) -> Tensor:
    """Symmetric and orthogonal (Sylvester)."""
    found = torch.ones(1, 1)
    while len(found) < size:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found / size**0.5


class Read(Protocol):
    """What linear layers read: see `LinearInput`, which is one; those of a dump are not known."""

    @property
    def layer(self) -> int | None: ...

    @property
    def site(self) -> str | None: ...

    @property
    def width(self) -> int: ...

    @property
    def layers(self) -> tuple[LinearLayer, ...]: ...


@dataclass(frozen=True)
class RunFindings:
    """What a run found that remedies are of.

    dims          by site, the dims that its rules selected, and the rules' names
    super_weights by layer's name, row and column
    seeds         draws of random dims
    tokens        which tokens `exact_positions` leaves exact, and how many
    """

    dims: Mapping[str, tuple[Sequence[int], str]]
    super_weights: Mapping[str, Sequence[tuple[int, int]]]
    seeds: int
    tokens: str | None = None


def treatments(
    one: Read, absmax: Tensor, heaviest: Callable[[], Tensor] | None, found: RunFindings
) -> Iterator[Treatment]:
    """Those of an input, first none.

    absmax     largest abs(x) of each channel over the run, (width,)
    heaviest   makes the largest abs weight of each channel over the layers that read it, (width,); None: not known
    """
    yield Treatment(NONE)
    dims, rules = found.dims.get(one.site or "", ((), ""))
    if dims:
        yield Treatment(EXACT_DIMS, f"{count(len(dims), 'dim')} of {rules}", _columns(one.width, dims, absmax.device))
        free = np.setdiff1d(np.arange(one.width), dims)
        for seed in range(found.seeds if len(dims) <= len(free) else 0):
            drawn = np.random.default_rng([seed, len(dims)]).choice(free, len(dims), replace=False)
            yield Treatment(EXACT_RANDOM, f"seed {seed}", _columns(one.width, drawn.tolist(), absmax.device))
    yield Treatment(EXACT_POSITIONS, found.tokens, positions=True)
    if own := {
        layer.name: found.super_weights[layer.name] for layer in one.layers if layer.name in found.super_weights
    }:
        yield Treatment(EXACT_SUPER_WEIGHT, count(sum(map(len, own.values())), "weight"), weights=own)
    if heaviest:
        for alpha in ALPHAS:
            yield Treatment(SMOOTH, f"alpha {alpha}", divisor=smoothing(absmax, heaviest(), alpha))
    yield Treatment(HADAMARD, "seed 0", rotation=Rotation(one.width, 0, absmax.device))
    for quantile in QUANTILES:
        yield Treatment(CLIP, f"quantile {quantile}", quantile=quantile)


def smoothing(absmax: Tensor, weight_max: Tensor, alpha: float) -> Tensor:
    """`max|X_j|^alpha / max|W_j|^(1 - alpha)` (Xiao et al. 2022), 1 where a channel or its weights are all zero."""
    scale = absmax**alpha / weight_max ** (1 - alpha)
    return torch.where((absmax > 0) & (weight_max > 0), scale, torch.ones_like(scale))


def _columns(width: int, dims: Sequence[int], device: torch.device) -> Tensor:
    columns = torch.zeros(width, dtype=torch.bool, device=device)
    columns[list(dims)] = True
    return columns
