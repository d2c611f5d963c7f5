"""Super experts taken out of a model while it runs, each against as many random experts of the same layers."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from outlier_features.ablate.ablation_effects import EXPERT_SITE
from outlier_features.ablate.ablation_targets import AblationTarget
from outlier_features.experts.moe_layers import MoeLayer
from outlier_features.model.sites import hooked

SHARED = -1  # among a target's experts, which are its `dims`


def expert_targets(experts: pl.DataFrame, rule: str) -> list[AblationTarget]:
    """The super experts that `rule` found: the one with the largest `max_abs` alone, and all.

    experts   rows of table `experts`
    """
    found = experts.filter("super_expert").sort("max_abs", descending=True, maintain_order=True)
    places = found.select("layer", pl.col("expert").cast(pl.Int64).fill_null(SHARED)).rows()
    targets = []
    for part in [places[:1], places][: len(places)]:
        layers, numbers = zip(*sorted(part), strict=True)
        targets.append(AblationTarget("expert", rule, EXPERT_SITE, layers, numbers))
    return targets


def random_experts(targets: Sequence[AblationTarget], experts: pl.DataFrame, seeds: int) -> Iterator[AblationTarget]:
    """For each target and each seed as many routed experts of the same layers, none of them a super expert.

    Drawn from those that any position chose, since another is worth nothing for certain; there is no draw where a layer
    has too few. Targets of the same layers share their draws.
    """
    others = experts.filter(pl.col("max_abs").is_not_null(), ~pl.col("super_expert"), part="expert")
    free = {layer: rows["expert"].sort().to_numpy() for (layer,), rows in others.group_by("layer")}
    for layers in dict.fromkeys(target.layers for target in targets):
        wanted = Counter(layers)
        if any(number > len(free.get(layer, ())) for layer, number in wanted.items()):
            continue
        for seed in range(seeds):
            draw = np.random.default_rng([seed, len(layers)])
            drawn = [sorted(draw.choice(free[layer], number, replace=False)) for layer, number in wanted.items()]
            numbers = tuple(int(expert) for one in drawn for expert in one)
            yield AblationTarget("random", None, EXPERT_SITE, layers, numbers, seed=seed)


@contextmanager
def pruned(moe: Mapping[int, MoeLayer], target: AblationTarget) -> Iterator[None]:
    """While the model runs, what these experts write is zero; the router chooses and weighs as ever.

    moe   the blocks with experts, by number
    """
    with ExitStack() as changes:
        for layer in dict.fromkeys(target.layers):
            here = [n for n, its in zip(target.dims, target.layers, strict=True) if its == layer]
            shared = moe[layer].shared
            if SHARED in here and shared is not None:
                changes.enter_context(hooked([(layer, shared)], _clear))
            if routed := [n for n in here if n != SHARED]:
                handle = moe[layer].experts.register_forward_pre_hook(_without(routed), with_kwargs=True)
                changes.callback(handle.remove)
        yield


def _clear(layer: int, output: torch.Tensor) -> None:
    output.zero_()


def _without(experts: Sequence[int]) -> Any:
    """A hook that sets the weights of `experts` to zero in what their module is called with."""

    def change(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        named = [*((n, value) for n, value in enumerate(args)), *kwargs.items()]
        tensors = [(key, value) for key, value in named if isinstance(value, torch.Tensor)]
        ((_, index),) = [one for one in tensors if not one[1].is_floating_point()]
        ((key, weight),) = [one for one in tensors if one[1].is_floating_point() and one[1].shape == index.shape]
        away = torch.isin(index, torch.tensor(experts, device=index.device, dtype=index.dtype))
        without = weight.masked_fill(away.to(weight.device), 0)
        if isinstance(key, int):
            return (*args[:key], without, *args[key + 1 :]), kwargs
        return args, {**kwargs, key: without}

    return change
