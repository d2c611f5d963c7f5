"""The figure of what a traced dim is made of where it is largest: embeddings, attention, MLPs, experts."""

from collections.abc import Collection
from dataclasses import replace

import plotly.graph_objects as go
import polars as pl

from outlier_features.dim_marks import dim_mark
from outlier_features.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    VERMILLION,
    Drawing,
    panels,
    set_dim_rows,
)
from outlier_features.origin.origin_findings import SUMS, traced_population, traced_rule
from outlier_features.origin.shares_of_parts import BETWEEN, EMBEDDINGS, ROUNDING, ROUTED, SHARED
from outlier_features.wording import capital, count, number, percent

MAX_DIMS = 24
_COLOURS = {
    EMBEDDINGS: INK, "attn_out": BLUE, "mixer_out": SKY, "mlp_out": ORANGE, ROUTED: PURPLE, SHARED: GREEN,
    "norm_after_attn": "#1B4F72", "norm_after_mlp": VERMILLION, "block": GREY, BETWEEN: "#B3B3B3", ROUNDING: PALE,
}  # fmt: skip
_NAMED = 0.07  # share of the axis from which a bar bears its number


def origin_shares(rows: pl.DataFrame, rules: Collection[str]) -> Drawing:
    """A bar for each traced dim at the token of its extreme, split into what its parts have written so far.

    rules   those that list massive activations
    """
    dims = rows["target_dim"].unique(maintain_order=True).to_list()
    drawing = Drawing(
        "origin-shares",
        "What a massive activation is made of",
        "resid_pre of the first layer, attn_out, mlp_out and the other parts of the layers",
        traced_rule(rows, rules),
        traced_population(rows),
        "Each bar is a traced dimension on resid_post at its traced token, after the layer where it is largest, split "
        "into what has been written into it up to there, over all layers. The parts sum to it; one against its sign "
        "lies left of zero."
        + (f" {count(len(dims) - MAX_DIMS, 'more dim')} in the table." if len(dims) > MAX_DIMS else ""),
    )
    known = rows.drop_nulls("share")
    if known.is_empty():
        return drawing.empty("Nothing is drawn: no dimension was traced.")
    shown = known["target_dim"].unique(maintain_order=True).to_list()[:MAX_DIMS]
    return replace(drawing, views={"all": _figure(known, shown)}, data=rows, finding=_finding(known))


def _finding(known: pl.DataFrame) -> str:
    """What makes most of the first dim, and of how many of the others."""
    most = known.sort("share").unique("target_dim", keep="last", maintain_order=True)
    makers = dict(most.select("target_dim", "part").iter_rows())
    first = known["target_dim"][0]
    row = most.filter(target_dim=first).row(0, named=True)
    value = row["value"] / row["share"]
    text = (
        f"Of the {number(value)} in dimension {dim_mark(first)} after layer {row['layer']}, {SUMS[row['part']]} wrote "
    )
    # What other parts take off again is not a part of the value.
    text += percent(row["share"]) if row["share"] <= 2 else f"{number(row['value'])}, of which others took most off"
    if len(makers) == 1:
        return f"{text}."
    alike = sum(part == row["part"] for part in makers.values())
    return f"{text}; in {number(alike)} of {count(len(makers), 'traced dimension')} that is the largest part."


def _figure(rows: pl.DataFrame, dims: list[int]) -> go.Figure:
    figure = panels([max(90, 34 * len(dims) + 20)], ["each dimension at its traced token"])
    rows = rows.filter(pl.col("target_dim").is_in(dims))
    ends = rows.group_by("target_dim", positive=pl.col("share") > 0).agg(pl.col("share").sum())["share"]
    low, high = min(0.0, *ends), max(1.0, *ends)
    labels = {}
    for part, colour in _COLOURS.items():
        here = rows.filter(part=part)
        if here.is_empty() or float(here["share"].abs().max()) < 1e-4:  # type: ignore[arg-type]
            continue
        shares = here["share"].to_list()
        figure.add_bar(
            x=shares,
            y=[dims.index(dim) for dim in here["target_dim"]],
            orientation="h",
            width=0.7,
            name=capital(SUMS[part]),
            text=[percent(share) if abs(share) >= _NAMED * (high - low) else "" for share in shares],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            customdata=[[percent(row["share"]), number(row["value"]), row["layer"]] for row in here.to_dicts()],
            hovertemplate=f"{capital(SUMS[part])}, up to layer %{{customdata[2]}}<br>%{{customdata[1]}}, "
            "%{customdata[0]} of the value<extra></extra>",
            marker={"color": colour, "line": {"color": "white", "width": 1}},
        )
    for dim, layer in rows.select("target_dim", "layer").unique(maintain_order=True).rows():
        labels[dim] = f"dim {dim}, after layer {layer}"
    figure.update_layout(barmode="relative", uniformtext={"minsize": 10, "mode": "show"}, margin_l=150, showlegend=True)
    set_dim_rows(figure, dims, [labels[dim] for dim in dims])
    figure.update_yaxes(title_text="traced dimension")
    figure.update_xaxes(title_text="share of the value on resid_post", tickformat=".0%",
                        range=[low - 0.03 * (high - low), high + 0.03 * (high - low)])  # fmt: skip
    return figure
