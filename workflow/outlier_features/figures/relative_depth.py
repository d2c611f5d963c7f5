"""The figure of what runs have over relative depth, a line for each: magnitude, kurtosis, hits and sinks."""

from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.attention.kept_patterns import first_key_by_layer
from outlier_features.figures.compared_runs import Compared
from outlier_features.figures.kurtosis import set_tail_scale, tail_place
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
from outlier_features.model.bases import NORM_OUTPUTS, RESID_POST
from outlier_features.populations import over_population, population_title, population_titles
from outlier_features.wording import capital, listing, number, percent

_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, INK)
_DASHES = ("solid", "dash", "dot", "dashdot")
_HEIGHT = 190
_NAMED = 3  # runs in a sentence


@dataclass(frozen=True)
class _Panel:
    """A column of the data; `scale`: log, tail (as kurtosis is drawn) or share."""

    column: str
    title: str
    hover: str
    scale: str


_PANELS = (
    _Panel("top1", "largest |x|<br>resid_post", "largest |x|", "log"),
    _Panel("ratio", "largest / median |x|<br>resid_post", "largest |x| / median", "log"),
    _Panel("kurtosis_flat_excess", "kurtosis, excess<br>resid_post", "excess kurtosis", "tail"),
    _Panel("positions_share", "positions with |x| ≥ 6<br>norms of the block", "positions with |x| ≥ 6", "share"),
    _Panel("sink_rate", "sink rate of<br>position 0", "sink rate", "share"),
)


def relative_depth(compared: Compared) -> Drawing:
    """What each run has in each block, over the depth of its model."""
    drawing = Drawing(
        "relative-depth",
        "Runs over relative depth",
        f"{RESID_POST}; {', '.join(NORM_OUTPUTS)}; pattern",
        "none, every value counts; a value with |x| >= 6 is a hit; attention sink as configured",
        population_titles(compared.populations),
        "A line for each run. Across: the block / the number of blocks, so that 100 % is the last one. From above: the "
        "largest |x| of a sequence on resid_post, averaged over the sequences; the same over the median |x|, averaged "
        "likewise; the excess kurtosis of all values there (0 if normal); the share of positions with some |x| >= 6 on "
        "a norm's output, of the norm with more; and the sink rate of position 0, the mean over heads, which is of all "
        "tokens in every view. A run without such a site or without attention patterns has no such line."
        + compared.of_revisions,
        min_width=700,
    )
    data = _data(compared)
    if data.select(panel.column for panel in _PANELS).null_count().row(0) == (len(data),) * len(_PANELS):
        return drawing.empty(f"Nothing is drawn: no run has site {RESID_POST}, a norm or attention patterns.")
    views = {population: _figure(compared, data, population) for population in compared.populations}
    return replace(drawing, views=views, data=data, finding=_finding(compared, data))


def _data(compared: Compared) -> pl.DataFrame:
    """A row for each run, population and block."""
    frames = []
    for run in compared.models["run"].unique(maintain_order=True):
        layers = compared.layers[run]
        stream = layers.filter(site=RESID_POST).select(
            "population", "layer", "top1", "median", "kurtosis_flat_excess",
            ratio=pl.when(pl.col("median") > 0).then(pl.col("top1") / pl.col("median")),
        )  # fmt: skip
        share = pl.when(pl.col("positions") > 0).then(pl.col("positions_hit") / pl.col("positions"))
        norms = layers.filter(pl.col("site").is_in([*NORM_OUTPUTS])).group_by("population", "layer")
        blocks = layers.select("population", "layer").unique()
        frame = blocks.join(stream, on=["population", "layer"], how="left").join(
            norms.agg(positions_share=share.max()), on=["population", "layer"], how="left"
        )
        if run in compared.sinks:
            rates = first_key_by_layer(compared.sinks[run]).select("layer", "sink_rate")
            frame = frame.join(rates, on="layer", how="left")
        else:
            frame = frame.with_columns(sink_rate=pl.lit(None, pl.Float64))
        frames.append(
            frame.select(
                pl.lit(run).alias("run"), "population", "layer", "median", *(panel.column for panel in _PANELS),
                depth=(pl.col("layer") + 1) / compared.blocks(run),
            ).sort("population", "layer")
        )  # fmt: skip
    return pl.concat(frames)


def _finding(compared: Compared, data: pl.DataFrame) -> str:
    """The runs whose largest |x| is furthest above the median, and at which depth."""
    population = compared.populations[0]
    known = data.filter(pl.col("ratio").is_not_null(), population=population).sort("ratio", descending=True)
    best = known.unique("run", keep="first", maintain_order=True).select("run", "ratio", "depth").rows()
    if not best:
        return ""
    named = [f"{compared.name(run)} {number(ratio)} times at {percent(depth)} of its depth"
             for run, ratio, depth in best[:_NAMED]]  # fmt: skip
    rest = [f"{len(best) - _NAMED} more below"] if len(best) > _NAMED else []
    return f"{capital(over_population(population))}, the largest |x| over the median is {listing([*named, *rest])}."


def line_of(index: int) -> dict[str, Any]:
    """How the line of the `index`-th of several models is drawn."""
    dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    return {"color": _COLOURS[index % len(_COLOURS)], "width": 1.6, "dash": dash}


def _figure(compared: Compared, data: pl.DataFrame, population: str) -> go.Figure:
    figure = panels([_HEIGHT] * len(_PANELS), [population_title(population)])
    runs = data["run"].unique(maintain_order=True).to_list()
    for row, panel in enumerate(_PANELS, start=1):
        known = data.filter(pl.col(panel.column).is_not_null())
        if panel.scale == "log":
            known = known.filter(pl.col(panel.column) > 0)
        drawn = known.filter(population=population)
        if drawn.is_empty():
            say_nothing_here(figure, "no run has such values", row, 1)
        for index, run in enumerate(runs):
            _add_line(figure, drawn.filter(run=run), label(compared.name(run)), index, panel, row)
        values = known[panel.column].to_list() or [1.0]
        if panel.scale == "log":
            figure.update_yaxes(**log_axis(*decades(values)), row=row, col=1)
        elif panel.scale == "tail":
            set_tail_scale(figure, [0.0, *values], row)
        else:
            halves = [0.0, 0.5, 1.0]
            figure.update_yaxes(range=[-0.05, 1.05], tickvals=halves, ticktext=[*map(percent, halves)], row=row, col=1)
        figure.update_yaxes(title_text=panel.title, row=row, col=1)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    figure.update_xaxes(range=[-0.02, 1.02], tickvals=ticks, ticktext=[*map(percent, ticks)])
    figure.update_xaxes(title_text="relative depth", row=len(_PANELS))
    figure.update_layout(legend={"orientation": "v", "x": 1.01, "xanchor": "left", "y": 1, "yanchor": "top"})
    return figure


def _add_line(figure: go.Figure, here: pl.DataFrame, name: str, index: int, panel: _Panel, row: int) -> None:
    values, said = here[panel.column].to_list(), percent if panel.scale == "share" else number
    figure.add_scatter(
        x=here["depth"].to_list(),
        y=[tail_place(value) for value in values] if panel.scale == "tail" else values,
        customdata=[(layer, said(value)) for layer, value in zip(here["layer"], values, strict=True)],
        name=name, legendgroup=name, showlegend=row == 1, mode="lines+markers", line=line_of(index), marker={"size": 4},
        hovertemplate=f"{name}<br>layer %{{customdata[0]}}, {panel.hover} %{{customdata[1]}}<extra></extra>",
        row=row, col=1,
    )  # fmt: skip
