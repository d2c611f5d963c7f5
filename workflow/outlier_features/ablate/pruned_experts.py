"""Which experts are pruned: the super experts, each time against as many random experts of the same layers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

SHARED = -1  # among a variant's experts


@dataclass(frozen=True)
class PrunedExperts:
    """The model without some experts; without any named, as it is.

    kind      baseline, expert or random
    layers    the block of each expert
    experts   their numbers, `SHARED` for the shared one
    """

    kind: str = "baseline"
    rule: str | None = None
    layers: tuple[int, ...] = ()
    experts: tuple[int, ...] = ()
    seed: int | None = None

    @property
    def unchanged(self) -> bool:
        return not self.experts

    def of_layer(self, layer: int) -> list[int]:
        return [expert for expert, its in zip(self.experts, self.layers, strict=True) if its == layer]


def super_experts(experts: pl.DataFrame, rule: str) -> list[PrunedExperts]:
    """Of the super experts that `rule` found: the one with the largest `max_abs` alone, and all.

    experts   rows of table `experts`
    """
    found = experts.filter("super_expert").sort("max_abs", descending=True, maintain_order=True)
    places = found.select("layer", pl.col("expert").cast(pl.Int64).fill_null(SHARED)).rows()
    variants = []
    for part in [places[:1], places][: len(places)]:
        layers, numbers = zip(*sorted(part), strict=True)
        variants.append(PrunedExperts("expert", rule, layers, numbers))
    return variants


def random_experts(variants: Sequence[PrunedExperts], experts: pl.DataFrame, seeds: int) -> Iterator[PrunedExperts]:
    """For each variant and each seed as many routed experts of the same layers, none of them a super expert.

    Drawn from those that any position chose, since another is worth nothing for certain; there is no draw where a layer
    has too few. Variants of the same layers share their draws.
    """
    others = experts.filter(pl.col("max_abs").is_not_null(), ~pl.col("super_expert"), part="expert")
    free = {layer: rows["expert"].sort().to_numpy() for (layer,), rows in others.group_by("layer")}
    for layers in dict.fromkeys(variant.layers for variant in variants):
        wanted = Counter(layers)
        if any(number > len(free.get(layer, ())) for layer, number in wanted.items()):
            continue
        for seed in range(seeds):
            draw = np.random.default_rng([seed, len(layers)])
            drawn = [sorted(draw.choice(free[layer], number, replace=False)) for layer, number in wanted.items()]
            yield PrunedExperts("random", None, layers, tuple(int(expert) for one in drawn for expert in one), seed)
