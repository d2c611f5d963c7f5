"""Which dims are followed to their origin, and at which token of which sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from outlier_features.largest import largest_of_each

Selection = Literal["massive", "named", "largest_rise"]


@dataclass(frozen=True)
class TracedDim:
    """A dim to trace, at the token of its largest massive activation, or of its largest `abs(x)` if it has none.

    selection      why: a rule that lists massive activations selects it, the config names it, or, where such rules
                   select none, its max abs(x) rises most over the blocks
    steps          the blocks where it steps up and down over the whole run
    layer, value   the block of its largest massive activation and its value, if the run's table has one
    """

    dim: int
    selection: Selection
    sequence: int
    position: int
    steps: tuple[int | None, int | None]
    layer: int | None = None
    value: float | None = None


def recorded_targets(
    wanted: Literal["auto"] | Sequence[int], max_dims: int, massive: pl.DataFrame, dims: pl.DataFrame
) -> dict[int, TracedDim | None]:
    """The dims to trace, None for one whose extreme the run's tables do not have.

    wanted     `auto`: the `max_dims` dims with the largest massive activations in population all; else those named
    massive    rows of massive.parquet, of the rules that are followed
    dims       rows of dims.parquet, of the same rules
    """
    largest = largest_of_each(massive.filter("massive_all"), "value", "dim")
    selected = dims.filter("selected", population="all")
    steps = {dim: (up, down) for dim, up, down in selected.select("dim", "step_up", "step_down").iter_rows()}
    selection: Selection = "massive" if wanted == "auto" else "named"
    found = {
        row["dim"]: TracedDim(
            row["dim"], selection, row["sequence"], row["token"], steps[row["dim"]], row["layer"], row["value"]
        )
        for row in largest.iter_rows(named=True)
    }
    names = list(found)[:max_dims] if wanted == "auto" else wanted
    return {dim: found.get(dim) for dim in names}
