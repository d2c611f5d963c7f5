"""What rounding does to the output of a linear layer, on the rows that were kept of its input."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from outlier_features.channels.linear_layers import LinearLayer
from outlier_features.files.quantization_columns import BOTH, INPUT, WEIGHT
from outlier_features.populations import POPULATIONS
from outlier_features.quantize.input_errors import InputErrors, KeptRows
from outlier_features.quantize.remedies import Treatment
from outlier_features.quantize.schemes import Scheme, WeightScheme

Array = np.ndarray[Any, Any]
Tensor = torch.Tensor


@dataclass
class LayerErrors:
    """Of a linear layer under one treatment and scheme.

    by_row         by what is rounded, the squared norms of the outputs' errors, (n,)
    weight_noise   sum of (w - Q(w))^2
    weight_signal  sum of w^2, of what is rounded
    """

    treatment: int
    scheme: Scheme
    by_row: dict[str, Array]
    weight_noise: float
    weight_signal: float


class _Weight:
    """A weight (out, in) as it is rounded under a treatment.

    energy   sum of w^2
    noise    by scheme, sum of (w - Q(w))^2
    """

    def __init__(self, matrix: Tensor):
        self.matrix, self.energy = matrix, _energy(matrix)
        self.noise: dict[WeightScheme, float] = {}
        self._lost: dict[WeightScheme, Tensor] = {}

    def lost(self, scheme: WeightScheme, treatment: Treatment, layer: str) -> Tensor:
        """Q(w) - w"""
        if scheme not in self._lost:
            self._lost[scheme] = treatment.rounded_weight(scheme, self.matrix, layer).sub_(self.matrix)
            self.noise[scheme] = _energy(self._lost[scheme])
        return self._lost[scheme]


class LayerOutputs:
    """A linear layer's outputs, on the rows kept of its input, rounded in every way."""

    def __init__(self, layer: LinearLayer, errors: InputErrors, rows: KeptRows):
        self._layer, self._errors, self._rows = layer, errors, rows
        number = len(rows.values)
        self.squares = np.zeros(number)
        """Squared norms of the exact outputs, (n,)."""

    @torch.inference_mode()
    def errors(self) -> list[LayerErrors]:
        """Of every treatment and scheme; sets `squares`."""
        found: dict[tuple[int, str], LayerErrors] = {}
        for expert, rows in self._by_expert():
            matrix = self._layer.matrix(expert)
            x = self._rows.values[rows]
            self.squares[rows.cpu().numpy()] = _squares(x @ matrix.mT)
            untouched = _Weight(matrix)
            for index, treatment in enumerate(self._errors.treatments):
                changed = treatment.input(x)
                weight = _Weight(treatment.weight(matrix)) if treatment.own_weight else untouched
                for scheme in self._errors.schemes_of(index):
                    lost = weight.lost(scheme.weight, treatment, self._layer.name)
                    one = found.setdefault((index, scheme.name), self._nothing(index, scheme, treatment))
                    one.weight_signal += weight.energy
                    one.weight_noise += weight.noise[scheme.weight]
                    if self._errors.like_none(index, scheme):
                        continue
                    for what, by_row in self._of_rows(index, scheme, changed, weight.matrix, lost, rows):
                        one.by_row[what][rows.cpu().numpy()] = by_row
        self._take_from_none(found)
        return list(found.values())

    def _take_from_none(self, found: dict[tuple[int, str], LayerErrors]) -> None:
        """The errors of rows that are rounded as without a remedy, but for those that are exact."""
        inexact = ~self._rows.exact.cpu().numpy()
        unremedied = {one.scheme.formula: one for one in found.values() if one.treatment == 0}
        for one in found.values():
            if self._errors.like_none(one.treatment, one.scheme):
                same = unremedied[one.scheme.formula].by_row
                one.by_row = {what: same[what] * inexact for what in one.by_row}

    def _nothing(self, index: int, scheme: Scheme, treatment: Treatment) -> LayerErrors:
        whats = [INPUT] * treatment.changes_input + [WEIGHT] * (treatment.own_weight or index == 0) + [BOTH]
        return LayerErrors(index, scheme, {what: np.zeros(len(self._rows.values)) for what in whats}, 0.0, 0.0)

    def _by_expert(self) -> Iterator[tuple[int | None, Tensor]]:
        device = self._rows.values.device
        if self._rows.experts is None:
            yield None, torch.arange(len(self._rows.values), device=device)
            return
        for expert in range(self._layer.experts):
            yield expert, torch.nonzero(self._rows.experts == expert)[:, 0]

    def _of_rows(
        self, index: int, scheme: Scheme, changed: Tensor, weight: Tensor, lost: Tensor, rows: Tensor
    ) -> Iterator[tuple[str, Array]]:
        treatment, exact = self._errors.treatments[index], self._rows.exact[rows]
        seen = self._rows.seen[index].at(rows)
        rounded = treatment.rounded(scheme, changed, seen, exact)
        of_input = (rounded - changed) @ weight.mT
        # What LLM.int8() leaves exact in a sequence, it multiplies by exact weights.
        counts = seen.kept if scheme.exact and seen.kept is not None else 1.0
        of_both = of_input + (rounded * counts) @ lost.mT
        results = {INPUT: of_input, BOTH: of_both}
        if treatment.own_weight or index == 0:
            results[WEIGHT] = (changed * counts) @ lost.mT
        for what, value in results.items():
            if what != INPUT or treatment.changes_input:
                yield what, _squares(value * ~exact[:, None] if treatment.positions else value)


class SampledOutputs:
    """A layer's exact outputs over the tokens of a population, and what rounding makes of them.

    tokens   that there are
    """

    def __init__(self, squares: Array, rows: KeptRows, population: str):
        """squares   norms of each row's exact output, (n,)"""
        self._inside = np.flatnonzero(np.isin(rows.parts, POPULATIONS[population]))
        self.tokens = len(self._inside)
        self._weight, self._output = rows.weight[self._inside], squares[self._inside]
        self._signal = float((self._weight * self._output).sum())
        exact, drawn = rows.exact.cpu().numpy()[self._inside], self._weight > 1
        self._strata = [np.flatnonzero(own) for own in (drawn & ~exact, drawn & exact) if own.any()]

    def relative_error(self, errors: Array) -> tuple[float | None, float | None]:
        """`||error|| / ||output||` of rows whose errors have these squared norms, (n,), and its standard error.

        Of a sequence's tokens that stay exact and of its others as many are drawn, so both sums are estimated (Horvitz
        and Thompson), and their ratio's error is that of a linear approximation. The standard error is None where all
        tokens are there, or one was drawn.
        """
        own = errors[self._inside]
        noise = float((self._weight * own).sum())
        if not self._signal or not np.isfinite(noise):
            return None, None
        ratio = noise / self._signal
        if not self._strata or any(len(drawn) == 1 for drawn in self._strata):
            return float(np.sqrt(ratio)), None
        variance = 0.0
        for drawn in self._strata:
            every, number = float(self._weight[drawn].sum()), len(drawn)
            spread = (own[drawn] - ratio * self._output[drawn]).var(ddof=1)
            variance += every**2 * (1 - number / every) * spread / number / self._signal**2
        return float(np.sqrt(ratio)), float(np.sqrt(variance) / (2 * np.sqrt(ratio))) if ratio else 0.0


def _energy(value: Tensor) -> float:
    return float(value.square().sum(1).double().sum())


def _squares(value: Tensor) -> Array:
    found: Array = value.square().sum(1).double().cpu().numpy()
    return found
