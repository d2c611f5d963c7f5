"""The figure of magnitude over relative depth, a line for each model."""

from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.compared_runs import Compared
from outlier_features.figures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Drawing,
    decades,
    label,
    log_axis,
    panels,
    say_nothing_here,
)
from outlier_features.model.bases import RESID_POST
from outlier_features.populations import population_title
from outlier_features.wording import listing, percent

_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, INK)
_DASHES = ("solid", "dash", "dot", "dashdot")
_PANELS = (("top1", "largest |x|"), ("ratio", "largest |x| / median |x|"))
_HEIGHT = 300


def relative_depth(compared: Compared) -> Drawing:
    """The largest |x| of a sequence on the residual stream over the depth of each model, and over its median."""
    drawing = Drawing(
        "relative-depth",
        "Magnitude over relative depth",
        RESID_POST,
        "none, every value counts",
        listing(compared.populations),
        "A line for each run: the largest |x| of a sequence (over its positions and dims) after each block, averaged "
        "over the sequences, and the same over the median |x|, which is averaged likewise. Across: the block / the "
        "number of blocks, so that 100 % is what the last one leaves." + compared.of_revisions,
        min_width=700,
    )
    rows = [
        frame.filter(site=RESID_POST).select(
            pl.lit(run).alias("run"), "population", "layer", "top1", "median",
            depth=(pl.col("layer") + 1) / compared.blocks(run),
            ratio=pl.when(pl.col("median") > 0).then(pl.col("top1") / pl.col("median")),
        )
        for run in compared.models["run"].unique(maintain_order=True)
        for frame in [compared.layers[run]]
        if (frame["site"] == RESID_POST).any()
    ]  # fmt: skip
    if not rows:
        return drawing.empty(f"Nothing is drawn: no run has site {RESID_POST}.")
    data = pl.concat(rows)
    views = {population: _figure(compared, data, population) for population in compared.populations}
    return replace(drawing, views=views, data=data)


def line_of(index: int) -> dict[str, Any]:
    """How the line of the `index`-th of several models is drawn."""
    dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    return {"color": _COLOURS[index % len(_COLOURS)], "width": 1.6, "dash": dash}


def _figure(compared: Compared, data: pl.DataFrame, population: str) -> go.Figure:
    figure = panels([_HEIGHT] * len(_PANELS), [population_title(population)])
    runs = data["run"].unique(maintain_order=True).to_list()
    for row, (name, title) in enumerate(_PANELS, start=1):
        drawn = data.filter(pl.col(name) > 0, population=population)
        if drawn.is_empty():
            say_nothing_here(figure, "no such tokens in this run", row, 1)
        for index, run in enumerate(runs):
            here, name_here = drawn.filter(run=run).sort("layer"), label(compared.name(run))
            figure.add_scatter(
                x=here["depth"].to_list(), y=here[name].to_list(), customdata=here["layer"].to_list(),
                name=name_here, legendgroup=run, showlegend=row == 1, mode="lines+markers",
                line=line_of(index), marker={"size": 4},
                hovertemplate=f"{name_here}<br>layer %{{customdata}}, {title} %{{y:.4g}}<extra></extra>",
                row=row, col=1,
            )  # fmt: skip
        low, high = decades([value for value in data[name].drop_nulls().to_list() if value > 0] or [1.0])
        figure.update_yaxes(**log_axis(low, high), title_text=title, row=row, col=1)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    figure.update_xaxes(range=[-0.02, 1.02], tickvals=ticks, ticktext=[*map(percent, ticks)])
    figure.update_xaxes(title_text="relative depth", row=len(_PANELS))
    figure.update_layout(legend={"orientation": "v", "x": 1.01, "xanchor": "left", "y": 1, "yanchor": "top"})
    return figure
