"""Linear layers whose inputs and weights are rounded while a model runs: what it would compute, were it quantized.

A layer's forward is another one for a while: it makes a rounded copy of what the layer reads, so that layers which read
the same tensor each round the plain one, and lends the layer a rounded weight for the one call. So no more than one
weight is there twice, and where weights are read on demand each is in memory when it is needed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from outlier_features.channels.linear_layers import LinearInput, LinearLayer
from outlier_features.experts.moe_layers import own_product, run_experts
from outlier_features.model.on_demand import require_weights
from outlier_features.model.placement import beside
from outlier_features.quantize.remedies import Treatment
from outlier_features.quantize.schemes import Scheme, Seen

Tensor = torch.Tensor


@dataclass(frozen=True)
class Batch:
    """The tokens of a pass.

    there   bool (B, T), no padding: what has no part in a scale
    exact   bool (B, T), tokens whose outputs are of full precision where a remedy says `positions`
    """

    there: Tensor
    exact: Tensor


@dataclass(frozen=True)
class Rounding:
    """How the layers are rounded.

    quantized   `x`, the input; `w`, the weight; `xw`, both
    absmax      largest abs(x) of each channel of an input over the run, (width,)
    treatment   the remedy of an input
    """

    scheme: Scheme
    quantized: str
    absmax: Callable[[LinearInput], Tensor]
    treatment: Callable[[LinearInput], Treatment]

    def product(
        self, one: LinearInput, layer: LinearLayer, expert: int | None, batch: Batch,
        x: Tensor, at: Tensor, multiply: Callable[[Tensor, Tensor | None], Tensor],
    ) -> Tensor:  # fmt: skip
        """What a layer makes of its input, rounded as it is: (n, out).

        x          (n, width)
        at         int64 (n,), where the rows lie in the flattened batch, ascending
        multiply   makes the output of rows and a matrix (out, width); of None, the layer's own
        """
        treatment = self.treatment(one)
        exact = beside(batch.exact, x).reshape(-1)[at] if treatment.positions else None
        rounded = changed = treatment.input(x.float())
        seen = None
        if "x" in self.quantized or self.scheme.exact:
            seen = self._seen(treatment, changed, beside(self.absmax(one), x), batch, at, exact)
        if seen is not None and "x" in self.quantized:
            rounded = treatment.rounded(self.scheme, changed, seen, exact)
        if "w" not in self.quantized and not treatment.own_weight:
            return self._with_exact(multiply(rounded.to(x.dtype), None), x, exact, multiply)
        weight = whole = treatment.weight(layer.matrix(expert))
        if "w" in self.quantized:
            whole = treatment.rounded_weight(self.scheme.weight, weight, layer.name)
        found = multiply(rounded.to(x.dtype), whole)
        if seen is not None and seen.kept is not None and whole is not weight:
            # The rows of the weight that belong to exact columns are exact, too.
            found = found + ((changed * (1 - seen.kept)) @ (weight - whole).mT).to(found.dtype)
        return self._with_exact(found, x, exact, multiply)

    @staticmethod
    def _with_exact(
        found: Tensor, x: Tensor, exact: Tensor | None, multiply: Callable[[Tensor, Tensor | None], Tensor]
    ) -> Tensor:
        if exact is not None and exact.any():
            found[exact] = multiply(x[exact], None)
        return found

    def _seen(
        self, treatment: Treatment, changed: Tensor, absmax: Tensor, batch: Batch, at: Tensor, exact: Tensor | None
    ) -> Seen:
        """Each sequence by itself, of its tokens that are no padding."""
        there = beside(batch.there, changed)
        counts = torch.bincount(at // there.shape[1], minlength=len(there)).tolist()
        parts: list[tuple[Seen, int]] = []
        stop = 0
        for count in counts:
            start, stop = stop, stop + count
            real = there.reshape(-1)[at[start:stop]]
            if not real.any():
                real = torch.ones_like(real)
            if count:
                rows = None if exact is None else exact[start:stop][real]
                parts.append((treatment.seen(changed[start:stop][real], absmax, rows, [self.scheme]), count))
        return Seen.joined(parts, changed.device)


@contextmanager
def quantizing(inputs: Sequence[LinearInput], rounding: Rounding, batch: Batch) -> Iterator[None]:
    """While it is open, passes over the batch are of a model whose layers that read these inputs are rounded.

    However it ends, modules and weights are what they were.
    """
    experts: dict[nn.Module, list[LinearInput]] = {}
    with ExitStack() as changed:
        for one in inputs:
            if one.experts:
                experts.setdefault(one.layers[0].module, []).append(one)
                continue
            for layer in one.layers:
                changed.enter_context(_forward(layer.module, _of_layer(one, layer, rounding, batch)))
        for module, own in experts.items():
            changed.enter_context(_forward(module, _of_experts(module, own, rounding, batch)))
        yield


def _of_layer(one: LinearInput, layer: LinearLayer, rounding: Rounding, batch: Batch) -> Callable[..., Tensor]:
    module, forward = layer.module, layer.module.forward

    def run(*args: Any, **kwargs: Any) -> Tensor:
        require_weights(module)
        (value,) = (*args, *kwargs.values())
        x = value.reshape(-1, one.width)

        def multiply(rows: Tensor, matrix: Tensor | None) -> Tensor:
            with _lent(layer, matrix):
                found: Tensor = forward(rows)
            return found

        output = rounding.product(one, layer, None, batch, x, torch.arange(len(x), device=x.device), multiply)
        return output.reshape(*value.shape[:-1], -1)

    return run


def _of_experts(
    module: nn.Module, inputs: Sequence[LinearInput], rounding: Rounding, batch: Batch
) -> Callable[..., Tensor]:
    by_parameter = {one.layers[0].parameter: one for one in inputs}

    def run(*args: Any, **kwargs: Any) -> Tensor:
        require_weights(module)
        plain = own_product(module)

        def product(parameter: str, expert: int, value: Tensor, at: Tensor) -> Tensor:
            one = by_parameter.get(parameter)
            if one is None:
                return plain(parameter, expert, value, at)

            def multiply(rows: Tensor, matrix: Tensor | None) -> Tensor:
                if matrix is None:
                    return plain(parameter, expert, rows, at)
                return rows @ matrix.to(rows.dtype).mT

            return rounding.product(one, one.layers[0], expert, batch, value, at, multiply)

        hidden, index, weight = (*args, *kwargs.values())[:3]
        return run_experts(module, hidden, index, weight, lambda call: None, product)

    return run


@contextmanager
def _lent(layer: LinearLayer, matrix: Tensor | None) -> Iterator[None]:
    """The layer has this matrix (out, width); None: its own."""
    own = layer.weight
    if matrix is not None:
        setattr(layer.module, layer.parameter, nn.Parameter(layer.put(matrix), requires_grad=False))
    try:
        yield
    finally:
        setattr(layer.module, layer.parameter, own)


@contextmanager
def _forward(module: Any, run: Callable[..., Tensor]) -> Iterator[None]:
    own = vars(module).get("forward")
    module.forward = run  # an attribute of the object hides the class's method
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
