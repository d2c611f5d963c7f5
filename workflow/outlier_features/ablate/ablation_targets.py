"""What an ablation changes: the dims that rules select and the super weights, each against random ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl

from outlier_features.model.bases import NORM_OUTPUTS, RESID_POST
from outlier_features.rules.rule import HitRule

WEIGHT_SITE = "mlp_down.weight"
EXCLUDED, REST, ALL = "excluded", "rest", "all"
ZERO, MEAN = "zero", "mean"
Row = TypeVar("Row", bound=tuple[int, ...])
_TREATMENTS = {RESID_POST: [(positions, value) for positions in (EXCLUDED, REST) for value in (ZERO, MEAN)]}


@dataclass(frozen=True)
class AblationTarget:
    """Dims of a site, or weights (`rows`, `cols`) of the blocks' down-projections.

    kind     dims, weight or random
    site     resid_post; several sites joined by `+`; or `WEIGHT_SITE`
    layers   the block of each dim or weight; empty where a dim is meant in every block
    dims     of weights, the rows
    """

    kind: str
    rule: str | None
    site: str
    layers: tuple[int, ...]
    dims: tuple[int, ...]
    cols: tuple[int, ...] = ()
    seed: int | None = None

    @property
    def treatments(self) -> list[tuple[str, str]]:
        """At which positions it is set to which value."""
        return _TREATMENTS.get(self.site, [(ALL, ZERO)])


def selected_targets(
    dims: pl.DataFrame, rules: Mapping[str, HitRule], super_weights: pl.DataFrame
) -> list[AblationTarget]:
    """What `rules` selected in population all, and what the search for super weights found.

    For each rule: its dims together, each at the output of its step-up block, and the one with the largest |x| there
    alone; for a rule on the inputs of linear layers also its dims there in every block, as in LLM.int8(). Of the super
    weights: the one with the largest spike on `mlp_down` alone, and all.
    """
    targets = []
    selected = dims.filter(pl.col("selected"), population="all").sort("max_abs", descending=True, maintain_order=True)
    for name, rule in rules.items():
        rows = selected.filter(rule=name)
        placed = rows.drop_nulls("step_up").select("step_up", "dim").rows()
        targets += [_placed(name, part) for part in largest_and_all(placed)]
        if {*rule.sites} <= {*NORM_OUTPUTS} and len(rows):
            targets.append(AblationTarget("dims", name, rows["sites"][0], (), tuple(rows["dim"])))
    weights = super_weights.sort(pl.col("mlp_down").abs(), descending=True, maintain_order=True)
    for part in largest_and_all(weights.select("layer", "row", "col").rows()):
        layers, outputs, cols = zip(*sorted(part), strict=True)
        targets.append(AblationTarget("weight", "super_weight", WEIGHT_SITE, layers, outputs, cols))
    return targets


def random_targets(
    targets: Sequence[AblationTarget], d_model: int, neurons: Mapping[int, int], seeds: int
) -> Iterator[AblationTarget]:
    """For each kind of target and each seed as many random dims or weights, none of them a dim or row of a target.

    d_model dims, and in each block so many `neurons`, are there to be drawn from; nothing is drawn where they do not
    suffice. Targets of one site with as many dims in the same blocks share their draws.
    """
    taken = {
        of_weights: {dim for target in targets if (target.site == WEIGHT_SITE) == of_weights for dim in target.dims}
        for of_weights in (True, False)
    }
    for site, layers, number in dict.fromkeys((target.site, target.layers, len(target.dims)) for target in targets):
        free = np.setdiff1d(np.arange(d_model), sorted(taken[site == WEIGHT_SITE]))
        for seed in range(seeds if number <= len(free) else 0):
            draw = np.random.default_rng([seed, number])
            dims = tuple(map(int, draw.choice(free, number, replace=False)))
            cols = tuple(int(draw.integers(neurons[layer])) for layer in layers) if site == WEIGHT_SITE else ()
            yield AblationTarget("random", None, site, layers, dims, cols, seed)


def _placed(rule: str, part: Sequence[tuple[int, ...]]) -> AblationTarget:
    layers, dims = zip(*sorted(part), strict=True)
    return AblationTarget("dims", rule, RESID_POST, layers, dims)


def largest_and_all(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """The first of the rows alone, and all of them where there are more."""
    return [part for part in (rows[:1], rows) if part][: len(rows)]
