"""The figure of how routers spread positions over experts."""

import math
from collections.abc import Sequence
from dataclasses import replace

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.style import (
    BLUE,
    VERMILLION,
    Drawing,
    panels,
    say_nothing_here,
    set_layer_axis,
)
from outlier_features.populations import over_population, population_titles
from outlier_features.wording import capital, count, number, percent

_NOBODY = "#B4B4B4"  # darker than the middle of the colours, which is nearly white
_FURTHEST = 3  # of the colours, in powers of two from an even share
_MAPS = (("load", "choices, against an even share"), ("mean_weight", "the router's mean weight where chosen"))


def expert_load(load: pl.DataFrame, balance: pl.DataFrame, blocks: int, populations: Sequence[str]) -> Drawing:
    """Load and mean weight of every expert in every layer, over the layers' entropy and largest load."""
    drawing = Drawing(
        "expert-load",
        "How the routers spread the positions",
        "the routers' choices and weights",
        "none",
        population_titles(populations),
        "Above: how many positions chose each expert, against an even share of the choices in its layer (1), and the "
        "mean weight that the router gave it there; a grey cell: no position chose it, or the layer has no experts. "
        f"Colours of the left map end at {2**_FURTHEST} times and 1/{2**_FURTHEST} of an even share. Below: the "
        "entropy of the choices of a layer (1 if all experts are chosen alike, 0 if one has all), and the largest load "
        "of an expert. Few positions cannot be spread evenly over many experts: the fewer, the less even they look.",
        min_width=900,
    )
    views = {name: _figure(load.filter(population=name), balance.filter(population=name), blocks)
             for name in populations}  # fmt: skip
    finding = _finding(balance.filter(population=populations[0]), populations[0])
    return replace(drawing, views=views, data=load, finding=finding)


def _finding(balance: pl.DataFrame, population: str) -> str:
    """The least even layer, the expert with the largest load, and how many experts nobody chose."""
    uneven = balance.drop_nulls("entropy").sort("entropy")
    if uneven.is_empty():
        return ""
    least, most = uneven.row(0, named=True), uneven.sort("largest_load").row(-1, named=True)
    never = int(balance["never_chosen"].sum())
    return (
        f"{capital(over_population(population))}, choices are least even in layer {least['layer']} (entropy "
        f"{number(least['entropy'])}); expert {most['largest_expert']} of layer {most['layer']} has "
        f"{number(most['largest_load'])} times an even share; {number(never)} of "
        f"{count(int(balance['experts'].sum()), 'expert')} {'is' if never == 1 else 'are'} never chosen."
    )


def _figure(load: pl.DataFrame, balance: pl.DataFrame, blocks: int) -> go.Figure:
    total = int(load["expert"].max()) + 1  # type: ignore[arg-type]
    titles = [title for _, title in _MAPS]
    figure = panels([min(640, max(160, 8 * total)), 150], titles, shared_yaxes=False, horizontal_spacing=0.15)
    figure.update_layout(margin_r=84, showlegend=False)
    for column, (name, title) in enumerate(_MAPS, start=1):
        _add_map(figure, load, name, title, total, blocks, column)
    figure.update_yaxes(title_text="expert (from 0)", row=1, col=1)
    _add_lines(figure, balance, blocks)
    set_layer_axis(figure, blocks - 1, 2)
    first = figure.get_subplot(1, 1).yaxis.domain
    for column in (1, 2):
        end = figure.get_subplot(1, column).xaxis.domain[1]
        bar = figure.data[column - 1].colorbar
        bar.update(x=end + 0.01, y=first[1], yanchor="top", len=first[1] - first[0], thickness=12, ypad=0)
    return figure


def _add_map(
    figure: go.Figure, load: pl.DataFrame, name: str, title: str, total: int, blocks: int, column: int
) -> None:
    rows = {(row["expert"], row["layer"]): row for row in load.iter_rows(named=True) if row["chosen"]}
    cells = [[rows.get((expert, layer)) for layer in range(blocks)] for expert in range(total)]
    is_load = name == "load"
    scale = {
        "colorscale": "RdBu_r" if is_load else "Viridis",
        "zmin": -_FURTHEST if is_load else 0,
        "zmax": _FURTHEST if is_load else max((row[name] for row in rows.values()), default=1),
        "colorbar": {"tickvals": [*range(-_FURTHEST, _FURTHEST + 1)],
                     "ticktext": [f"1/{2**-k}" if k < 0 else str(2**k) for k in range(-_FURTHEST, _FURTHEST + 1)]}
        if is_load
        else {},
    }  # fmt: skip
    figure.add_heatmap(
        x=list(range(blocks)),
        y=list(range(total)),
        z=[[row and (math.log2(row[name]) if is_load else row[name]) for row in line] for line in cells],
        customdata=[
            [
                [count(row["chosen"], "position"), percent(row["share"]), number(row["load"]),
                 number(row["mean_weight"]), percent(row["weight_share"])] if row else [""] * 5
                for row in line
            ]
            for line in cells
        ],
        hovertemplate="expert %{y}, layer %{x}<br>chosen by %{customdata[0]} (%{customdata[1]}), "
        "%{customdata[2]} times an even share<br>mean weight %{customdata[3]}, %{customdata[4]} of all weights"
        "<extra></extra>",
        hoverongaps=False,
        row=1,
        col=column,
        **scale,
    )  # fmt: skip
    figure.add_shape(
        type="rect", x0=0, x1=1, y0=0, y1=1, xref="x domain", yref="y domain", fillcolor=_NOBODY, line_width=0,
        layer="below", row=1, col=column,
    )  # fmt: skip
    step = max(1, 2 ** math.ceil(math.log2(total / 16)))
    figure.update_yaxes(
        tickvals=list(range(0, total, step)), range=[total - 0.5, -0.5], showgrid=False, row=1, col=column
    )
    figure.update_xaxes(showgrid=False, row=1, col=column)


def _add_lines(figure: go.Figure, balance: pl.DataFrame, blocks: int) -> None:
    by_layer = {row["layer"]: row for row in balance.iter_rows(named=True)}
    lines = (("entropy", "entropy of the choices<br>(1 is even)", BLUE), ("largest_load", "largest load<br>(1 is even)",
                                                                          VERMILLION))  # fmt: skip
    for column, (name, title, colour) in enumerate(lines, start=1):
        values = [by_layer[layer][name] if layer in by_layer else None for layer in range(blocks)]
        figure.update_yaxes(title_text=title, rangemode="tozero", row=2, col=column)
        if not any(value is not None for value in values):
            say_nothing_here(figure, "no such tokens in this run", 2, column)
            continue
        figure.add_scatter(
            x=list(range(blocks)),
            y=values,
            mode="lines+markers",
            line={"color": colour, "width": 1.8},
            marker={"size": 6},
            customdata=[by_layer[layer]["largest_expert"] if layer in by_layer else None for layer in range(blocks)],
            hovertemplate="layer %{x}<br>%{y:.4g}" + (" (expert %{customdata})" if column == 2 else "")
            + "<extra></extra>",
            row=2,
            col=column,
        )  # fmt: skip
    figure.update_yaxes(range=[0, 1.05], row=2, col=1)
