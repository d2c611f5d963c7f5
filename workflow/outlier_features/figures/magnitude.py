"""The figure of the largest and the median |x| in every layer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.style import (
    BLUE,
    ORANGE,
    SKY,
    VERMILLION,
    Drawing,
    decades,
    label,
    log_axis,
    panels,
    say_nothing_here,
    set_layer_axis,
)
from outlier_features.model.bases import NO_OTHER_MIXER
from outlier_features.populations import over_population, population_title, population_titles
from outlier_features.wording import count, listing, number

_SERIES = (
    ("top1", "top-1 |x|", VERMILLION, "solid", "circle"),
    ("top2", "top-2 |x|", ORANGE, "dash", "square"),
    ("top3", "top-3 |x|", SKY, "dot", "diamond"),
    ("median", "median |x|", BLUE, "solid", "x"),
)
_COLUMNS = [column for column, *_ in _SERIES]


def magnitude_by_layer(layers: pl.DataFrame, absent: Mapping[str, str], populations: Sequence[str]) -> Drawing:
    """Top-1, top-2, top-3 and median of |x| in every layer, a row of panels for each site."""
    sites = layers["site"].unique(maintain_order=True).to_list()
    zeros = sum(int((layers[column] == 0).sum()) for column in _COLUMNS)
    drawing = Drawing(
        "magnitude-by-layer",
        "Magnitude by layer",
        listing(sites) if sites else "none",
        "none, every value counts",
        population_titles(populations),
        "The largest, second and third largest and the median |x| of a sequence (over its positions and dimensions) in "
        "each layer, averaged over the sequences."
        + "".join(f" Site {site} is absent: {reason}." for site, reason in absent.items() if reason != NO_OTHER_MIXER)
        + (f" {count(zeros, 'value')} of exactly 0 cannot be shown on a logarithmic axis." if zeros else ""),
    )
    if not sites:
        return drawing.empty("Nothing is drawn: this run has no site.")
    views = {population: _figure(layers, sites, population) for population in populations}
    data = layers.select("population", "site", "layer", *_COLUMNS)
    return replace(drawing, views=views, data=data, finding=_finding(data, populations))


def _finding(data: pl.DataFrame, populations: Sequence[str]) -> str:
    """Where the largest |x| is furthest above the median, and how far the same site gets in the other populations."""
    ratios = data.filter(pl.col("median") > 0).with_columns(ratio=pl.col("top1") / pl.col("median"))
    found = ratios.filter(population=populations[0]).sort("ratio", descending=True, nulls_last=True).head(1).to_dicts()
    if not found or found[0]["ratio"] is None:
        return ""
    [most] = found
    text = (
        f"On {most['site']}, the largest |x| of a sequence is furthest above the median in layer {most['layer']}: "
        f"{number(most['top1'])} against {number(most['median'])}, {number(most['ratio'])} times"
    )
    for population in populations[1:]:
        here = ratios.filter(population=population, site=most["site"]).drop_nulls("ratio").sort("ratio")
        if not here.is_empty():
            last = here.row(-1, named=True)
            text += f"; {over_population(population)} at most {number(last['ratio'])} times (layer {last['layer']})"
    return f"{text}."


def _figure(layers: pl.DataFrame, sites: Sequence[str], population: str) -> go.Figure:
    figure = panels([190] * len(sites), [population_title(population)])
    figure.update_layout(hovermode="x unified")
    last = max(layers["layer"].to_list())
    for row, site in enumerate(sites, start=1):
        values = layers.filter(site=site)
        here = values.filter(population=population).sort("layer")
        if here["top1"].is_null().all():
            say_nothing_here(figure, "no such tokens in this run", row, 1)
        _add_series(figure, here, last, row)
        _set_scale(figure, values, row)
        figure.update_yaxes(title_text=f"{label(site)}<br>|x| (activation)", row=row, col=1)
    set_layer_axis(figure, last, len(sites))
    return figure


def _set_scale(figure: go.Figure, values: pl.DataFrame, row: int) -> None:
    """The same for every population."""
    positive = [value for name in _COLUMNS for value in values[name].drop_nulls().to_list() if value > 0]
    low, high = decades(positive or [1.0])
    figure.update_yaxes(**log_axis(low, high), row=row)


def _add_series(figure: go.Figure, here: pl.DataFrame, last: int, row: int) -> None:
    """Lines over all layers, broken where the site is absent from some."""
    index = {layer: i for i, layer in enumerate(here["layer"].to_list())}
    for name, title, colour, dash, symbol in _SERIES:
        values = here[name].to_list()
        figure.add_scatter(
            x=list(range(last + 1)),
            y=[values[index[layer]] if layer in index else None for layer in range(last + 1)],
            name=title,
            legendgroup=name,
            showlegend=row == 1,
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 1.8},
            marker={"symbol": symbol, "size": 6},
            hovertemplate="%{y:.4g}",
            row=row,
            col=1,
        )
