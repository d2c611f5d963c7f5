"""Which neurons and dims of a run get a page, and why."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from outlier_features.files.tables import read_batches
from outlier_features.gallery.names import THE_NEURON
from outlier_features.gallery.written_weights import Bank, WrittenWeights
from outlier_features.largest import largest_of_each
from outlier_features.neurons.neurons_schema import NEURON_STATISTICS, NEURONS
from outlier_features.summary.run_rules import main_rules

OF_TRACED, OF_SELECTED = 20, 10  # neurons that feed a dim
Wanted = Literal["selected", "all"]


def selected_dims(dims: pl.DataFrame, rules: Mapping[str, Any], most: int) -> list[int]:
    """The dims that followed rules of the residual stream selected in any population, the largest first, at most so
    many.

    dims    the run's table
    rules   of its provenance
    """
    names = list(main_rules({"rules": rules}))
    chosen = dims.filter("selected", pl.col("rule").is_in(names))
    found: list[int] = largest_of_each(chosen, "max_abs", "dim")["dim"].to_list()
    return found[:most]


def known_neurons(statistics: Path, neurons: Path) -> pl.DataFrame:
    """Every neuron that some position of the run has, in order: `layer`, `expert`, `neuron`, over all positions its
    `min`, `max` and `kurtosis`; `extreme`: of its ranked values the one of largest `abs`, the larger of equal ones; and
    `ranked`: rows that the table of ranked neurons has of it.
    """
    batches = read_batches(statistics, NEURON_STATISTICS)
    columns = (*THE_NEURON, "min", "max", "kurtosis")
    known = pl.concat(
        batch.filter(pl.col("population") == "all", pl.col("tokens") > 0).select(columns) for batch in batches
    )
    first, counts = [], []
    for batch in read_batches(neurons, NEURONS):
        counts.append(batch.group_by(THE_NEURON).agg(ranked=pl.len()))
        first.append(batch.filter(pl.col("population") == "all", pl.col("rank") == 1))
    extremes = (
        pl.concat(first)
        .group_by(THE_NEURON)
        .agg(extreme=pl.col("value").sort_by(pl.col("value").abs(), pl.col("value")).last())
    )
    ranked = pl.concat(counts).group_by(THE_NEURON).agg(pl.col("ranked").sum())
    for more in (extremes, ranked):
        known = known.join(more, on=THE_NEURON, how="left", nulls_equal=True)
    return known.sort(THE_NEURON)


def ranked_sequences(neurons: Path, pages: pl.DataFrame) -> list[set[int]]:
    """The sequences that the table of ranked neurons has of each row of `pages`, in any population."""
    wanted = pages.select(THE_NEURON).with_row_index("at")
    found: list[set[int]] = [set() for _ in range(len(pages))]
    for batch in read_batches(neurons, NEURONS, pages["layer"].unique().to_list()):
        here = batch.join(wanted, on=THE_NEURON, nulls_equal=True).group_by("at").agg("sequence")
        for at, sequences in here.rows():
            found[at].update(sequences)
    return found


def choose_pages(
    known: pl.DataFrame,
    dims: Sequence[int],
    origin_neurons: pl.DataFrame,
    weights: WrittenWeights,
    *,
    wanted: Wanted,
    kurtosis: int,
) -> pl.DataFrame:
    """The rows of `known` that get a page, in its order, with `reasons`.

    dims             that rules selected
    origin_neurons   the run's table of traced dims
    kurtosis         neurons of the largest kurtosis that get a page
    """
    reasons: dict[tuple[Any, ...], list[str]] = {}
    for target, feeding in _feeding(known, dims, origin_neurons, weights):
        for neuron in feeding:
            here = reasons.setdefault(neuron, [])
            if f"feeds dim {target}" not in here:
                here.append(f"feeds dim {target}")
    peaked = known.filter(pl.col("kurtosis").is_finite()).sort("kurtosis", descending=True, maintain_order=True)
    for neuron in peaked.head(kurtosis).select(THE_NEURON).rows():
        reasons.setdefault(neuron, []).append("kurtosis")
    neurons = known.select(THE_NEURON).rows()
    if wanted == "all":
        for neuron in neurons:
            reasons.setdefault(neuron, []).append("all")
    column = pl.Series("reasons", [reasons.get(neuron) for neuron in neurons], dtype=pl.List(pl.String))
    return known.with_columns(column).filter(pl.col("reasons").is_not_null())


def _feeding(
    known: pl.DataFrame, dims: Sequence[int], origin_neurons: pl.DataFrame, weights: WrittenWeights
) -> Iterable[tuple[int, list[tuple[Any, ...]]]]:
    traced = origin_neurons.filter(pl.col("rank") <= OF_TRACED).sort("target_dim", "layer", "rank")
    for (target, layer), rows in traced.group_by("target_dim", "layer", maintain_order=True):
        yield int(str(target)), [(layer, None, neuron) for neuron in rows["neuron"]]
    yield from zip(dims, feeding_most(known, dims, weights, OF_SELECTED), strict=True)


def feeding_most(
    known: pl.DataFrame, dims: Sequence[int], weights: WrittenWeights, count: int
) -> list[list[tuple[Any, ...]]]:
    """For each dim the neurons with the largest `abs(extreme x W_down)`, the largest first; of equal ones the first of
    `known`."""
    sizes = np.zeros((len(dims), 0))
    for bank, rows in banks_of(known):
        written = weights.columns(bank, rows["neuron"].to_numpy()) if dims else None
        extreme = rows["extreme"].fill_null(0).to_numpy().astype(np.float64)
        here = np.abs(written[list(dims)] * extreme) if written is not None else np.zeros((len(dims), len(rows)))
        sizes = np.concatenate([sizes, here], axis=1)
    neurons = known.select(THE_NEURON)
    return [
        neurons[[int(at) for at in np.argsort(-of_dim, kind="stable")[:count] if of_dim[at] > 0]].rows()
        for of_dim in sizes
    ]


def banks_of(neurons: pl.DataFrame) -> list[tuple[Bank, pl.DataFrame]]:
    """The rows of each block's or expert's neurons, in their order."""
    parts = neurons.partition_by("layer", "expert", as_dict=True, maintain_order=True)
    return [
        (Bank(int(layer), None if expert is None else int(expert)), rows) for (layer, expert), rows in parts.items()
    ]
