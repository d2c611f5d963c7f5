"""The figure of what makes and what removes a dim, layer by layer."""

import math
from collections.abc import Collection, Mapping
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
    SKY,
    VERMILLION,
    Drawing,
    above,
    panels,
    set_layer_axis,
    set_panel_dim,
)
from outlier_features.origin.origin_findings import (
    PARTS,
    TENTH,
    traced_population,
    traced_rule,
    whole_blocks,
)
from outlier_features.origin.shares_of_parts import ROUTED, SHARED, largest_layer
from outlier_features.wording import count, number

MAX_DIMS = 6
_PARTS = {
    "attn_out": ("attention adds", BLUE, ""),
    "norm_after_attn": ("the norm after attention changes", SKY, "/"),
    "mixer_out": ("the mixer adds", BLUE, "x"),
    "mlp_out": ("the MLP adds", ORANGE, ""),
    ROUTED: ("the routed experts add", PURPLE, ""),
    SHARED: ("the shared expert adds", GREEN, ""),
    "norm_after_mlp": ("the norm after the MLP changes", VERMILLION, "\\"),
    "block": ("the block adds", GREY, "."),
}


def lifecycle(rows: pl.DataFrame, rules: Collection[str]) -> Drawing:
    """For each traced dim, at the token of its extreme: what each part of each layer adds, and what is left after.

    rules   those that list massive activations
    """
    dims = rows["target_dim"].unique(maintain_order=True).to_list()
    drawing = Drawing(
        "lifecycle",
        "What makes a massive activation, and what removes it",
        "resid_pre, attn_out, mlp_out, resid_post",
        traced_rule(rows, rules),
        traced_population(rows),
        "Each traced dimension at the token of its largest massive activation, or of its largest |x| where it has "
        "none. Bars: what the parts of a layer add to it, signed; they sum to the change of the line, the value after "
        "the layer."
        + (f" {whole}" if (whole := whole_blocks(rows)) else "")
        + (f" {count(len(dims) - MAX_DIMS, 'more dim')} in the table." if len(dims) > MAX_DIMS else ""),
    )
    if not dims:
        return drawing.empty("Nothing is drawn: no dimension was traced.")
    views = {"all": _figure(rows, dims[:MAX_DIMS])}
    return replace(drawing, views=views, data=rows, finding=_finding(rows.filter(target_dim=dims[0])))


def _finding(life: pl.DataFrame) -> str:
    """What writes most into the first dim up to where it is largest, and what takes most of it off after that."""
    last = largest_layer(life)
    peak = float(life.filter(part="resid_post", layer=last)["value"].item())
    sign = math.copysign(1.0, peak)
    added = life.filter(~pl.col("part").is_in(["resid_pre", "resid_post"])).with_columns(with_it=pl.col("value") * sign)
    first = life.row(0, named=True)
    text = (
        f"Dimension {dim_mark(first['target_dim'])} is {number(peak)} after layer {last} at position "
        f"{first['traced_token']} of sequence {first['sequence']}"
    )
    makers = added.filter(pl.col("with_it") > 0, pl.col("layer") <= last).sort("with_it")
    if makers.is_empty():
        text += "; no part adds to it before"
    else:
        most = makers.row(-1, named=True)
        text += f": {_part(most)} {'write' if most['part'] == ROUTED else 'writes'} {number(most['value'])}, the most"
    takers = added.filter(pl.col("with_it") < -TENTH * abs(peak), pl.col("layer") > last).sort("with_it")
    if takers.is_empty():
        return f"{text}; no later part takes off a tenth of it."
    most = takers.row(0, named=True)
    verb = "take" if most["part"] == ROUTED else "takes"
    return f"{text}; later {_part(most)} {verb} off {number(abs(most['value']))}."


def _part(row: Mapping[str, Any]) -> str:
    return f"{PARTS[row['part']]} of layer {row['layer']}"


def _figure(rows: pl.DataFrame, dims: list[int]) -> go.Figure:
    figure = panels([230] * len(dims), ["each dimension at its traced token"])
    figure.update_layout(barmode="relative", hovermode="x unified", bargap=0.25, margin_l=112)
    parts = [part for part in _PARTS if part in rows["part"]]
    for row, dim in enumerate(dims, start=1):
        life = rows.filter(target_dim=dim)
        for part in parts:
            name, colour, shape = _PARTS[part]
            hatch = {"shape": shape, "fgcolor": INK, "bgcolor": colour}
            here = life.filter(part=part)
            figure.add_bar(
                x=here["layer"].to_list(), y=here["value"].to_list(), name=name, legendgroup=part,
                showlegend=row == 1,
                marker={"color": colour, "pattern": hatch, "line": {"color": INK, "width": 0.5}},
                hovertemplate="%{y:+.5g}", row=row, col=1,
            )  # fmt: skip
        after = life.filter(part="resid_post")
        figure.add_scatter(
            x=after["layer"].to_list(), y=after["value"].to_list(), name="after the layer (resid_post)",
            legendgroup="resid_post", showlegend=row == 1, mode="lines+markers",
            line={"color": INK, "width": 1.8}, marker={"size": 5}, hovertemplate="%{y:.5g}", row=row, col=1,
        )  # fmt: skip
        set_panel_dim(figure, dim, row)
        place = life.row(0, named=True)
        title = f"dim {dim}, sequence {place['sequence']},<br>position {place['traced_token']}<br>x (activation)"
        figure.update_yaxes(title_text=title, zeroline=True, zerolinecolor=GREY, tickformat=",", row=row, col=1)
    figure.update_layout(legend={"y": above(figure)})
    set_layer_axis(figure, int(rows["layer"].max()), len(dims))  # type: ignore[arg-type]
    return figure
