"""What of a model is knocked out: sublayers, heads, dims at their massive tokens, super weights by degrees."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from outlier_features.ablate.ablation_targets import MEAN, ZERO, largest_and_all
from outlier_features.tokens.tokens import Array

SCALES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0)  # of figure 6 in Yu et al. 2024, about
ALL, MASSIVE, MASSIVE_FIRST, MASSIVE_LATER = "all", "massive", "massive_first", "massive_later"
SCALED, RESTORED = "scaled", "restored"
MOST_DIMS = 8  # whose values are followed


@dataclass(frozen=True)
class KnockOut:
    """A variant of the model; its fields are the columns of `KNOCK_OUTS`, and `baseline` is the unchanged model."""

    target: str
    layers: tuple[int, ...] = ()
    head: int | None = None
    dims: tuple[int, ...] = ()
    cols: tuple[int, ...] = ()
    positions: str = ALL
    value: str | None = ZERO
    scale: float | None = None

    @property
    def unchanged(self) -> bool:
        return self.target == "baseline"


BASELINE = KnockOut("baseline", value=None)


@dataclass(frozen=True)
class MassiveDim:
    """A dim of the residual stream, the block where it steps up, and where it is massive, bool (N, T)."""

    dim: int
    step_up: int | None
    places: Array


def massive_dims(
    dims: pl.DataFrame, massive: pl.DataFrame, rules: Collection[str], shape: tuple[int, int]
) -> list[MassiveDim]:
    """The dims that rules which list massive activations select in population all, the largest first, at most eight.

    massive   rows of massive.parquet: a dim's massive tokens are those at which it has one in any layer
    rules     names of those rules
    shape     (N, T) of the sample: the run's first sequences, their first tokens
    """
    selected = dims.filter(pl.col("selected"), pl.col("rule").is_in(rules), population="all")
    largest = selected.sort("max_abs", "dim", descending=[True, False]).unique("dim", keep="first", maintain_order=True)
    found = []
    for row in largest.head(MOST_DIMS).iter_rows(named=True):
        at = massive.filter(
            pl.col("massive_all"), pl.col("rule").is_in(rules), pl.col("sequence") < shape[0],
            pl.col("token") < shape[1], dim=row["dim"],
        )  # fmt: skip
        places = np.zeros(shape, bool)
        places[at["sequence"].to_numpy(), at["token"].to_numpy()] = True
        found.append(MassiveDim(row["dim"], row["step_up"], places))
    return found


def sublayer_targets(having: Mapping[str, Sequence[int]]) -> list[KnockOut]:
    """Each kind of sublayer off in all blocks that have it, then in one after the other.

    having   by kind, its blocks
    """
    every = [KnockOut(target, tuple(layers)) for target, layers in having.items() if layers]
    return every + [
        KnockOut(target, (layer,)) for target, layers in having.items() if len(layers) > 1 for layer in layers
    ]


def head_targets(heads: Mapping[int, int]) -> list[KnockOut]:
    """Each head off; `heads` by layer their number."""
    return [KnockOut("head", (layer,), head) for layer, number in sorted(heads.items()) for head in range(number)]


def massive_targets(massive: Sequence[MassiveDim], where: Mapping[str, Array]) -> list[KnockOut]:
    """The dims at all their massive tokens, at the first ones and at later ones; the largest alone, and all.

    where   for each set of positions, bool (N, T); a dim is left out of those that it has no massive token in
    """
    found = []
    for positions, there in where.items():
        placed = [(one.step_up, one.dim) for one in massive if one.step_up is not None and (one.places & there).any()]
        for part in largest_and_all(placed):
            layers, dims = zip(*sorted(part), strict=True)
            found += [KnockOut("massive_tokens", layers, None, dims, (), positions, value) for value in (ZERO, MEAN)]
    return found


def weight_targets(weights: pl.DataFrame) -> list[KnockOut]:
    """The super weight with the largest spike on mlp_down, and all, times each of `SCALES`; and restored."""
    ranked = weights.sort(pl.col("mlp_down").abs(), descending=True, maintain_order=True)
    found = []
    for part in largest_and_all(ranked.select("layer", "row", "col").rows()):
        layers, rows, cols = zip(*sorted(part), strict=True)
        found += [KnockOut("weight", layers, None, rows, cols, ALL, SCALED, scale) for scale in SCALES]
        found.append(KnockOut("weight", layers, None, rows, cols, ALL, RESTORED))
    return found
