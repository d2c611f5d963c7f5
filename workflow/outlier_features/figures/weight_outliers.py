"""The figure of dims that are large in what a linear layer reads, or in its weight."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.dim_marks import dim_mark
from outlier_features.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    VERMILLION,
    Drawing,
    add_legend_entry,
    decades,
    label,
    log_axis,
    of_dims,
    panels,
)
from outlier_features.model.bases import RESIDUAL, SITES, basis_of
from outlier_features.wording import count, number

MOST_POINTS = 4000
MOST_DIMS = 5
_STYLES = (
    (VERMILLION, "diamond"),
    (BLUE, "square"),
    (ORANGE, "triangle-up"),
    (GREEN, "triangle-down"),
    (PURPLE, "cross"),
)
_OTHER = {"color": INK, "symbol": "x", "size": 6}
_UNSELECTED = {"color": GREY, "symbol": "circle", "size": 4, "opacity": 0.6}
_IN_RESIDUAL = pl.col("site").is_in([site for site in SITES if basis_of(site) == RESIDUAL])


def weight_outliers(outliers: pl.DataFrame) -> Drawing:
    """How far dims stand out in layers' inputs, over how far their columns of the weights do; a panel for each site."""
    points = _points(outliers)
    shown = points.sort(pl.max_horizontal("ratio", "activation_ratio"), descending=True).head(MOST_POINTS)
    largest = points.filter("selected", _IN_RESIDUAL).group_by("dim").agg(pl.col("activation_ratio").max())
    chosen = largest.sort(["activation_ratio", "dim"], descending=[True, False])["dim"].to_list()
    named = chosen[:MOST_DIMS]
    left_out = ""
    if len(shown) < len(points):
        left_out += f" Of {count(len(points), 'point')} the {len(shown):,} that stand out most."
    if len(named) < len(chosen):
        left_out += f" Of {len(chosen):,} selected dims of the residual stream the {len(named)} largest are told apart."
    drawing = Drawing(
        "weight-outliers",
        "Outliers of weights, and of what they multiply",
        " + ".join(_sites(points)) or "none",
        "the dimensions that a rule selects are marked",
        "all tokens; weights are the model's, of no population",
        "A point is a dim of a site in a layer. Upward: its largest |x| over the mean of all dims' largest. To the "
        "right: its largest |w| over the mean of all columns', in the linear layer that reads the site where that is "
        "largest. Dashed: the mean. Top left: large activations that small weights meet; bottom right: large weights "
        "of a small dim. Drawn are of each linear layer the five dims that stand out most by weight, the five by "
        f"activation, and the selected ones; the others lie nearer to the mean.{left_out}",
        min_width=640,
    )
    if points.is_empty():
        return drawing.empty("Nothing is drawn: no column of a weight could be compared with what it reads.")
    return replace(drawing, views={"all": _figure(shown, named)}, data=shown, finding=_finding(points, named))


def _sites(points: pl.DataFrame) -> list[str]:
    return [site for site in SITES if (points["site"] == site).any()]


def _points(outliers: pl.DataFrame) -> pl.DataFrame:
    """A row for each site, layer and dim: of the linear layers that read it the one whose column stands out most."""
    columns = outliers.filter(
        pl.col("ratio") > 0, pl.col("activation_ratio") > 0, pl.col("site").is_not_null(), axis="in"
    )
    largest = columns.sort("ratio", descending=True, maintain_order=True).unique(
        ["site", "layer", "dim"], keep="first", maintain_order=True
    )
    return largest.sort("layer", "site", "dim", maintain_order=True).select(
        "layer", "site", "module", "dim", "max_abs", "ratio", "rank", "activation_max_abs", "activation_ratio",
        "activation_rank", "selected",
    )  # fmt: skip


def _finding(points: pl.DataFrame, named: Sequence[int]) -> str:
    """Where the most outstanding selected dim is largest, and what weights it meets there; else the largest of all."""
    own = points.filter("selected", _IN_RESIDUAL, pl.col("dim") == named[0]) if named else points
    row = own.sort("activation_ratio", descending=True, maintain_order=True).row(0, named=True)
    mark = dim_mark(row["dim"]) if basis_of(row["site"]) == RESIDUAL else row["dim"]
    larger = "larger" if row["ratio"] >= 1 else "smaller"
    return (
        f"At {row['site']} of layer {row['layer']}, dimension {mark}{'' if named else ', which no rule selects,'} is "
        f"{number(row['activation_ratio'])} times the mean dim and meets weights {larger} than the mean, "
        f"{number(row['ratio'])} times."
    )


def _figure(points: pl.DataFrame, named: Sequence[int]) -> go.Figure:
    sites = _sites(points)
    rows = -(-len(sites) // 2)
    figure = panels([260] * rows, [""] * min(2, len(sites)), gap=74, horizontal_spacing=0.05,
                    shared_xaxes=False, shared_yaxes="all")  # fmt: skip
    across, up = (_axis(points[name].to_list()) for name in ("ratio", "activation_ratio"))
    for place, site in enumerate(sites):
        row, column = place // 2 + 1, place % 2 + 1
        here, at = points.filter(site=site), (row, column)
        told = named if basis_of(site) == RESIDUAL else []
        _add(figure, here.filter(~pl.col("selected")), _UNSELECTED, at)
        _add(figure, here.filter("selected", ~pl.col("dim").is_in(told)), _OTHER, at)
        for dim, (colour, symbol) in zip(told, _STYLES, strict=False):
            style = {"color": colour, "symbol": symbol, "size": 8, "line": {"color": INK, "width": 0.6}}
            _add(figure, here.filter("selected", dim=dim), style, at, dim)
        line = {"color": INK, "dash": "dash", "width": 1}
        figure.add_hline(y=1, line=line, row=row, col=column)
        figure.add_vline(x=1, line=line, row=row, col=column)
        figure.add_annotation(text=label(site), x=0.01, y=1, xref="x domain", yref="y domain", xanchor="left",
                              yanchor="bottom", showarrow=False, font={"size": 13}, row=row, col=column)  # fmt: skip
        figure.update_xaxes(**across, title_text="column of the weight, times the mean", row=row, col=column)
        figure.update_yaxes(**up, row=row, col=column)
        if column == 1:
            figure.update_yaxes(title_text="activation, times the mean", row=row, col=column)
    for dim, (colour, symbol) in zip(named, _STYLES, strict=False):
        add_legend_entry(figure, f"dim {dim}", marker={"color": colour, "symbol": symbol, "size": 9}, **of_dims(dim))
    if not points.filter("selected", ~(_IN_RESIDUAL & pl.col("dim").is_in(named))).is_empty():
        add_legend_entry(figure, "other selected dims", marker={**_OTHER, "size": 8})
    add_legend_entry(figure, "not selected", marker={"color": GREY, "symbol": "circle", "size": 7})
    if len(sites) % 2 and len(sites) > 1:
        figure.update_xaxes(visible=False, row=rows, col=2)
        figure.update_yaxes(visible=False, row=rows, col=2)
    return figure


def _axis(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis that ends at the outermost values and the mean."""
    logs = [0.0, *map(math.log10, values)]
    return {**log_axis(*decades(values)), "range": [min(logs) - 0.12, max(logs) + 0.12]}


def _add(
    figure: go.Figure, rows: pl.DataFrame, marker: Mapping[str, Any], at: tuple[int, int], dim: int | None = None
) -> None:
    if rows.is_empty():
        return
    details = [
        [row["dim"], row["layer"], label(row["module"]), number(row["activation_max_abs"]), number(row["max_abs"])]
        for row in rows.iter_rows(named=True)
    ]
    figure.add_scatter(
        x=rows["ratio"].to_list(), y=rows["activation_ratio"].to_list(), mode="markers", marker=marker,
        showlegend=False, customdata=details,
        hovertemplate="dim %{customdata[0]}, layer %{customdata[1]}<br>max |x| %{customdata[3]}, %{y:.4g} times the "
        "mean<br>max |w| %{customdata[4]}, %{x:.4g} times the mean, in %{customdata[2]}<extra></extra>",
        row=at[0], col=at[1], **({} if dim is None else of_dims(dim)),
    )  # fmt: skip
