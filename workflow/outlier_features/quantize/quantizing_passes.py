"""Passes of a model whose linear layers are fake-quantized: some or all of them, by a scheme and with a remedy."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from outlier_features.ablate.subject import Subject
from outlier_features.ablate.variant_passes import VariantPasses
from outlier_features.channels.linear_layers import LinearInput
from outlier_features.files.quantization_columns import EXACT_DIMS, EXACT_POSITIONS, EXACT_SUPER_WEIGHT, NONE
from outlier_features.quantize.divergence import Divergence
from outlier_features.quantize.fake_quantization import Batch, Rounding, quantizing
from outlier_features.quantize.loss_schema import QUANTIZATION_LOSS_SEQUENCES
from outlier_features.quantize.remedies import RunFindings, Treatment, treatments
from outlier_features.quantize.schemes import SCHEMES
from outlier_features.tokens.tokens import Tokens

Tensor = torch.Tensor
ALL = "all"
_TOKENS_AT_ONCE = 1024  # on a CPU


@dataclass(frozen=True)
class Quantized:
    """A model with the layers rounded that read these of its inputs; the model as it is where there are none.

    inputs     their numbers
    what       these inputs, in a word: `all`, `site:mlp_act`, `module:<name>`, `kept:<order>:<k>`
    setting    of the remedy, where it is one for all inputs
    """

    inputs: tuple[int, ...] = ()
    scheme: str | None = None
    quantized: str | None = None
    remedy: str | None = None
    setting: str | None = None
    what: str = ALL

    @property
    def unchanged(self) -> bool:
        return not self.inputs


class QuantizingPasses(VariantPasses[Quantized]):
    """A model, and the sample that it is measured on with some of its linear layers rounded.

    inputs     of the linear layers of its blocks
    absmax     by their name the largest abs(x) of each channel over the run, (width,)
    exact      bool (N, T), tokens of full precision under remedy `exact_positions`
    there      bool (N, T), tokens that are no padding; by itself, what the sample says
    """

    table = QUANTIZATION_LOSS_SEQUENCES
    called = "quantized models"

    def __init__(
        self,
        subject: Subject,
        sample: Tokens,
        batch_size: int,
        *,
        inputs: tuple[LinearInput, ...],
        absmax: Mapping[str, Tensor],
        found: RunFindings,
        exact: np.ndarray[Any, Any],
    ):
        self.inputs, self._absmax, self._found = inputs, absmax, found
        self._tried: dict[LinearInput, list[Treatment]] = {}
        super().__init__(subject, sample, batch_size)
        if self._loaded.device.type == "cpu":
            # A weight is rounded once for all sequences of a batch, which are the same whatever the extraction's are.
            self._batch_size = max(1, _TOKENS_AT_ONCE // sample.tokens.shape[1])
        self._divergence = Divergence(self._recorder)
        self.set_exact(exact)

    def set_exact(self, exact: np.ndarray[Any, Any], there: np.ndarray[Any, Any] | None = None) -> None:
        device = self._loaded.device
        self._exact = torch.from_numpy(exact).to(device)
        self._there = self._mask if there is None else torch.from_numpy(there).to(device)

    def first_changed(self, variant: Quantized) -> int:
        return min(self._layer(number) for number in variant.inputs)

    def is_alone(self, variant: Quantized) -> bool:
        return True  # weights are those of all rows

    def scored(self, ids: Tensor, mask: Tensor, unchanged: bool) -> dict[str, Tensor]:
        if unchanged:
            self._divergence.keep()
        return self._divergence.scores(ids, mask)

    @contextmanager
    def changed(self, variant: Quantized, rows: slice, times: int, number: int, start: int) -> Iterator[None]:
        assert variant.scheme and variant.quantized
        rounding = Rounding(
            SCHEMES[variant.scheme], variant.quantized, lambda one: self._absmax[one.name], self._treatment(variant)
        )
        batch = Batch(self._there[rows], self._exact[rows])
        with quantizing([self.inputs[n] for n in variant.inputs], rounding, batch):
            yield

    def _layer(self, number: int) -> int:
        layer = self.inputs[number].layer
        assert layer is not None  # the head's is none of these
        return layer

    def _treatment(self, variant: Quantized) -> Callable[[LinearInput], Treatment]:
        wanted = variant.remedy, variant.setting

        def of(one: LinearInput) -> Treatment:
            if variant.remedy == NONE:
                return Treatment(NONE)
            return next((its for its in self._treatments(one) if remedy_of_model(its) == wanted), Treatment(NONE))

        return of

    def _treatments(self, one: LinearInput) -> list[Treatment]:
        """Made when the block runs, whose weights are in memory then."""
        if one not in self._tried:
            absmax = self._absmax[one.name].to(one.layers[0].weight.device)
            self._tried[one] = list(treatments(one, absmax, lambda: heaviest(one), self._found))
        return self._tried[one]


def remedy_of_model(treatment: Treatment) -> tuple[str, str | None]:
    """Remedy and setting under which inputs are treated together: what is exact is another number of dims at each."""
    counted = treatment.remedy in (EXACT_DIMS, EXACT_POSITIONS, EXACT_SUPER_WEIGHT)
    return treatment.remedy, None if counted else treatment.setting


def heaviest(one: LinearInput) -> Tensor:
    """The largest abs weight of each channel over the layers, and experts, that read it: (width,)."""
    experts = range(one.experts) if one.experts else (None,)
    return torch.stack([layer.matrix(n).abs().amax(0) for layer in one.layers for n in experts]).amax(0)
