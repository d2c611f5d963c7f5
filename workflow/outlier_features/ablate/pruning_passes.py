"""Passes of a model without some of its experts: what these write is zero, and its routers choose and weigh as ever."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import polars as pl
import torch
from torch import nn

from outlier_features.ablate.ablation_effects import EXPERT_SITE
from outlier_features.ablate.expert_ablation_schema import EXPERT_ABLATION
from outlier_features.ablate.pruned_experts import SHARED, PrunedExperts
from outlier_features.ablate.variant_passes import VariantPasses, joined, mean_scores
from outlier_features.errors import InputError
from outlier_features.experts.moe_layers import find_moe_layers
from outlier_features.model.models import LoadedModel
from outlier_features.model.sites import hooked
from outlier_features.tokens.tokens import Tokens


class PruningPasses(VariantPasses[PrunedExperts]):
    """A model, and the sample that it is measured on without some of its experts.

    Raises `InputError` where the parts of its blocks with experts are not proven.
    """

    def __init__(self, loaded: LoadedModel, sample: Tokens, batch_size: int):
        super().__init__(loaded, sample, batch_size)
        found = find_moe_layers(loaded, self._blocks)
        if found.absent:
            raise InputError(found.absent)
        self._moe = {layer.layer: layer for layer in found.layers}

    def first_changed(self, variant: PrunedExperts) -> int:
        return min(variant.layers)

    def is_alone(self, variant: PrunedExperts) -> bool:
        return True  # experts are those of all rows

    @contextmanager
    def changed(self, variant: PrunedExperts, rows: slice, times: int, number: int, start: int) -> Iterator[None]:
        with ExitStack() as changes:
            for layer in dict.fromkeys(variant.layers):
                moe, here = self._moe[layer], variant.of_layer(layer)
                if SHARED in here and moe.shared is not None:
                    changes.enter_context(hooked([(layer, moe.shared)], _clear, self._prefixes.past(start)))
                if routed := [expert for expert in here if expert != SHARED]:
                    hook = moe.experts.register_forward_pre_hook(_without(routed), with_kwargs=True)
                    changes.callback(hook.remove)
            yield


def _clear(layer: int, output: torch.Tensor) -> None:
    output.zero_()


def _without(experts: Sequence[int]) -> Callable[..., tuple[Any, Any]]:
    """A hook on the experts' module, which is called with hidden states, choices and weights: those of `experts` are 0.

    So their outputs count as zero whatever function runs the module.
    """

    def change(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        tensors = {key: value for key, value in given.items() if isinstance(value, torch.Tensor)}
        (chosen,) = [value for value in tensors.values() if not value.is_floating_point()]
        (key,) = [key for key, one in tensors.items() if one.is_floating_point() and one.shape == chosen.shape]
        away = torch.isin(chosen, torch.tensor(experts, device=chosen.device, dtype=chosen.dtype))
        given[key] = tensors[key].masked_fill(away, 0)
        return tuple(given[n] for n in range(len(args))), {name: given[name] for name in kwargs}

    return change


def expert_ablation_rows(variants: Sequence[PrunedExperts], by_sequence: pl.DataFrame) -> pl.DataFrame:
    """The rows of `EXPERT_ABLATION` from those of `ABLATION_SEQUENCES`."""
    scores = mean_scores(by_sequence)
    rows = [
        {"variant": index, "target": variant.kind}
        if variant.unchanged
        else {
            "variant": index,
            "target": variant.kind,
            "rule": variant.rule,
            "site": EXPERT_SITE,
            "layers": joined(variant.layers),
            "experts": "+".join("shared" if expert == SHARED else str(expert) for expert in variant.experts),
            "number": len(variant.experts),
            "seed": variant.seed,
            "positions": "all",
            "value": "zero",
        }
        for index, variant in enumerate(variants)
    ]
    schema = {name: dtype for name, dtype in EXPERT_ABLATION.schema.items() if name not in scores.columns[1:]}
    return pl.DataFrame(rows, schema=schema).join(scores, on="variant", how="left").sort("variant")
