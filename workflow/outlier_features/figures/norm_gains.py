"""The figure of the norms' gains: at the selected dims, and the distribution over all others, in every layer."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.dim_marks import dim_mark
from outlier_features.figures.dimension_map import choosing, chosen_dims
from outlier_features.figures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    VERMILLION,
    Drawing,
    capped,
    decades,
    label,
    log_axis,
    of_dims,
    panels,
    set_layer_axis,
)
from outlier_features.norms.describe_gains import OTHERS
from outlier_features.norms.gain_summary import ones_sentence
from outlier_features.populations import population_titles
from outlier_features.wording import count, number

MAX_DIMS = 5
MAX_DECADES = 6
_STYLES = (
    (VERMILLION, "circle", "solid"),
    (BLUE, "square", "dash"),
    (ORANGE, "diamond", "dot"),
    (GREEN, "triangle-up", "dashdot"),
    (PURPLE, "x", "longdash"),
)
_BANDS = (
    ("others_min", "others_max", "others, min to max", "#E3E3E3", 0.86),
    ("others_p05", "others_p95", "others, 5 % to 95 %", "#B5B5B5", 0.58),
)


def norm_gains(
    norms: pl.DataFrame,
    gains: pl.DataFrame,
    dims: pl.DataFrame,
    rules: Collection[str],
    summary: Mapping[str, Any],
    populations: Sequence[str],
) -> Drawing:
    """|gain| of the selected dims in every layer, against the dims that are not selected; a row of panels a site.

    rules     those whose dims are drawn
    summary   of the norms
    """
    placed = norms.drop_nulls(["site", "layer", "min"]).sort("layer")
    chosen = chosen_dims(dims, rules)
    shown = chosen[:MAX_DIMS]
    at = gains.filter(pl.col("dim").is_in(shown)).unique(["dim", "module"], maintain_order=True)
    at = at.with_columns(size_of_gain=pl.col("gain").abs())
    sizes = {
        site: [
            *at.filter(site=site)["size_of_gain"].to_list(),
            *(value for name in OTHERS for value in here[name].drop_nulls().to_list()),
        ]
        for (site,), here in placed.group_by("site", maintain_order=True)
    }
    spans = {site: _span(values) for site, values in sizes.items()}
    below = sum(value < 10.0 ** spans[site][0] for site, values in sizes.items() for value in values)
    drawing = Drawing(
        "norm-gains",
        "Gains of the norms",
        "; ".join(site.replace("+", " = ") for site in spans) or "none",
        f"{choosing(rules)} the dimensions",
        f"the gains are the model's, of no population; dimensions selected in {population_titles(populations)}",
        "Drawn is |gain|, what a norm's normalised input is multiplied by, of the norms whose output is a site of a "
        "block. Lines: dimensions that a rule selects in a population; grey: those of the same norm that none selects."
        + ("" if chosen else " No dimension is selected.")
        + capped(len(chosen), len(shown), "selected dimension")
        + (f" {count(below, 'value')} below an axis' lowest tick, such as 0, are drawn there." if below else ""),
    )
    if not spans:
        why = "Nothing is drawn: no norm that makes a site of a block has a gain."
        return drawing.empty(f"{why} {ones_sentence(summary)}")
    gains_of_dims = at.select("module", "dim", "gain", "rank", "ratio")
    drawn = placed.select("module", "site", "layer", *OTHERS).join(gains_of_dims, on="module", how="left")
    views = {"all": _figure(placed, at, shown, spans)}
    return replace(drawing, views=views, data=drawn, finding=_finding(at, shown))


def _finding(at: pl.DataFrame, shown: Sequence[int]) -> str:
    """Of the largest selected dim, where its gain differs most from those of other dims, to either side."""
    for dim in shown:
        known = at.filter(pl.col("ratio").is_not_null(), pl.col("layer").is_not_null(), dim=dim).sort("ratio")
        if not known.is_empty():
            ends = known.select("ratio", "site", "layer")
            (least, site, layer), (most, other, later) = ends.row(0), ends.row(-1)
            return (
                f"The |gain| of dimension {dim_mark(dim)} is between {number(least)} times the median of the "
                f"dimensions not selected ({site}, layer {layer}) and {number(most)} times ({other}, layer {later})."
            )
    return ""


def _figure(
    placed: pl.DataFrame, at: pl.DataFrame, shown: Sequence[int], floors: Mapping[str, tuple[int, int]]
) -> go.Figure:
    figure = panels([230] * len(floors), ["gain of the norm, whatever the text"])
    figure.update_layout(barmode="overlay")
    last = int(placed["layer"].to_numpy().max())
    for row, (site, (low, high)) in enumerate(floors.items(), start=1):
        _add_others(figure, placed.filter(site=site), last, 10.0**low, row)
        for dim, style in zip(shown, _STYLES, strict=False):
            _add_dim(figure, at.filter(site=site, dim=dim), dim, style, last, 10.0**low, row)
        title = f"{label(site.replace('+', ' = '))}<br>|gain| (no unit)"
        figure.update_yaxes(**log_axis(low, high), title_text=title, row=row)
    set_layer_axis(figure, last, len(floors))
    return figure


def _span(values: Sequence[float]) -> tuple[int, int]:
    """Exponents of a logarithmic axis that reaches up to the largest value, and not too far down."""
    low, high = decades([value for value in values if value > 0] or [1.0])
    return max(low, high - MAX_DECADES), high


def _add_others(figure: go.Figure, here: pl.DataFrame, last: int, floor: float, row: int) -> None:
    """Bands and median of the dims that are not selected; what is below `floor` is drawn there."""
    known = here.drop_nulls("others_median")
    for bottom, top, title, colour, width in _BANDS:
        low, high = (known[name].to_list() for name in (bottom, top))
        figure.add_bar(
            x=known["layer"].to_list(),
            base=[max(value, floor) for value in low],
            y=[max(value, floor) - max(start, floor) for start, value in zip(low, high, strict=True)],
            width=width,
            marker={"color": colour, "line": {"width": 0}},
            customdata=list(zip(low, high, strict=True)),
            hovertemplate=f"layer %{{x}}, {title}<br>|gain| %{{customdata[0]:.4g}} to %{{customdata[1]:.4g}}"
            "<extra></extra>",
            name=title,
            legendgroup=title,
            showlegend=row == 1,
            row=row,
            col=1,
        )
    figure.add_scatter(
        **_over_layers(known, "others_median", last, floor),
        name="others, median",
        legendgroup="median",
        showlegend=row == 1,
        mode="lines+markers",
        line={"color": INK, "width": 1.2},
        marker={"symbol": "line-ew-open", "size": 9},
        hovertemplate="layer %{x}, median of the others<br>|gain| %{customdata:.4g}<extra></extra>",
        row=row,
        col=1,
    )


def _add_dim(
    figure: go.Figure, here: pl.DataFrame, dim: int, style: tuple[str, str, str], last: int, floor: float, row: int
) -> None:
    colour, symbol, dash = style
    rows = {one["layer"]: one for one in here.to_dicts()}
    details = [
        [number(one["gain"]), one["rank"], one["size"], number(one["ratio"])] if one else None
        for one in map(rows.get, range(last + 1))
    ]
    figure.add_scatter(
        **_over_layers(here, "size_of_gain", last, floor) | {"customdata": details},
        **of_dims(dim),
        name=f"dimension {dim}",
        legendgroup=f"{dim}",
        showlegend=row == 1,
        mode="lines+markers",
        line={"color": colour, "dash": dash, "width": 1.8},
        marker={"symbol": symbol, "size": 7},
        hovertemplate=f"dimension {dim}, layer %{{x}}<br>gain %{{customdata[0]}}, rank %{{customdata[1]}} of "
        "%{customdata[2]}<br>%{customdata[3]} times the median of the others<extra></extra>",
        row=row,
        col=1,
    )


def _over_layers(here: pl.DataFrame, column: str, last: int, floor: float) -> dict[str, list[Any]]:
    """x and y over all layers, None where there is no such norm; the values themselves as `customdata`."""
    by_layer = dict(here.select("layer", column).rows())
    values = [by_layer.get(layer) for layer in range(last + 1)]
    drawn = [None if value is None else max(value, floor) for value in values]
    return {"x": list(range(last + 1)), "y": drawn, "customdata": values}
