"""What the page of a dim shows, and the values that colour text by a dim or by the norm."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from outlier_features.dim_marks import dim_name
from outlier_features.gallery.gallery_run import GalleryRun
from outlier_features.gallery.names import Neuron, sequence_name
from outlier_features.gallery.packed_values import halves
from outlier_features.origin.origin_findings import lifecycle_sentences
from outlier_features.populations import POPULATIONS, population_title
from outlier_features.visible_text import visible

FEEDERS = 30
NORM = "norm"


def dim_page(run: GalleryRun, dim: int) -> dict[str, Any]:
    """The data of a dim's page."""
    dims = run.dims_with_page
    place = dims.index(dim) if dim in dims else None
    life = run.lifecycle.filter(target_dim=dim)
    recorded = run.recorded.filter(dim=dim)
    return {
        "name": dim_name(dim),
        "dim": dim,
        "has_page": place is not None,
        "around": [
            None if place is None or not 0 <= place + step < len(dims) else dim_name(dims[place + step])
            for step in (-1, 1)
        ],
        "selected": run.selected.filter(dim=dim)
        .select("population", "rule", "sites", "kind", "max_abs", "first_layer", "last_layer", "step_up", "step_down")
        .to_dicts(),
        "populations": {one: population_title(one) for one in POPULATIONS},
        "curves": [
            {"site": site, "population": population, **one.select("layer", "max_abs").to_dict(as_series=False)}
            for (site, population), one in run.emergence.filter(dim=dim).sort("layer").group_by(
                "site", "population", maintain_order=True
            )
        ],
        "traced": _traced(life),
        "sentences": [visible(one) for one in lifecycle_sentences(life)] if len(life) else [],
        "parts": life.select("layer", "part", "value", "share").rows(),
        "gains": run.gains.filter(dim=dim)
        .unique(("module",), maintain_order=True)
        .select("module", "layer", "gain", "rank", "size", "ratio")
        .rows(),
        "ablations": _ablations(run.ablation, dim),
        "feeders": [*_feeders(run, dim)],
        "writers": [*_writers(run, dim)],
        "layers": recorded["layer"].unique().sort().to_list(),
        "sequences": [sequence_name(one) for one in recorded["sequence"].unique().sort()],
    }  # fmt: skip


def values_name(dim: int | None, layer: int) -> str:
    """The data that colour text by a dim, or by the norm of the whole vector."""
    return f"{NORM if dim is None else dim_name(dim)}L{layer}"


def values_along_text(rows: pl.DataFrame) -> dict[str, Any]:
    """By sequence, of one dim (or the norm) in one layer."""
    return {
        sequence_name(sequence): halves(values.to_numpy())
        for sequence, values in zip(rows["sequence"].to_list(), rows["values"], strict=True)
    }


def _traced(life: pl.DataFrame) -> dict[str, Any] | None:
    if life.is_empty():
        return None
    found = life.row(0, named=True)
    return {"sequence": found["sequence"], "token": found["traced_token"], "text": visible(found["token_text"] or "")}


def _ablations(ablation: pl.DataFrame, dim: int) -> list[dict[str, Any]]:
    """Variants that set this dim, alone or with others, and the unchanged model before them."""
    if ablation.is_empty():
        return []
    unchanged = ablation.filter(target="baseline").row(0, named=True)
    sets_it = pl.col("dims").str.split("+").list.contains(str(dim)) & (pl.col("target") == "dims")
    rows = ablation.filter(sets_it).to_dicts()
    return [
        {**{name: row[name] for name in ("rule", "number", "positions", "value", "perplexity")},
         "times": row["perplexity"] / unchanged["perplexity"]}
        for row in rows
    ]  # fmt: skip


def _feeders(run: GalleryRun, dim: int) -> Iterator[list[Any]]:
    """Of each block that was traced, the neurons that write most to the dim at the traced token."""
    pages = {*run.neurons_with_page}
    found = run.origin_neurons.filter(pl.col("target_dim") == dim, pl.col("rank") <= FEEDERS)
    for row in found.sort(pl.col("contribution").abs(), descending=True, maintain_order=True).to_dicts():
        neuron = Neuron(row["layer"], None, row["neuron"])
        yield [str(neuron), neuron in pages, *(row[name] for name in ("activation", "weight", "contribution", "share"))]


def _writers(run: GalleryRun, dim: int) -> Iterator[list[Any]]:
    """Neurons with pages that write to the dim, the largest first."""
    written = []
    for row in run.pages.filter(pl.col("writes_dims").list.contains(dim)).to_dicts():
        place = row["writes_dims"].index(dim)
        name = str(Neuron(row["layer"], row["expert"], row["neuron"]))
        written.append([name, row["writes"][place], row["writes_weights"][place]])
    yield from sorted(written, key=lambda one: -abs(one[1]))
