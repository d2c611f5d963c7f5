"""The figure of what makes and what removes a dim, layer by layer."""

from collections.abc import Collection
from dataclasses import replace

import plotly.graph_objects as go
import polars as pl

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
)
from outlier_features.origin.origin_findings import (
    traced_population,
    traced_rule,
    whole_blocks,
)
from outlier_features.origin.shares_of_parts import ROUTED, SHARED
from outlier_features.wording import count

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
    return replace(drawing, views={"all": _figure(rows, dims[:MAX_DIMS])}, data=rows)


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
        place = life.row(0, named=True)
        title = f"dim {dim}, sequence {place['sequence']},<br>position {place['traced_token']}<br>x (activation)"
        figure.update_yaxes(title_text=title, zeroline=True, zerolinecolor=GREY, tickformat=",", row=row, col=1)
    figure.update_layout(legend={"y": above(figure)})
    set_layer_axis(figure, int(rows["layer"].max()), len(dims))  # type: ignore[arg-type]
    return figure
