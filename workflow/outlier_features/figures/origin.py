"""The figure of an MLP's checkpoints, and of the neurons that feed a traced dim."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.dim_marks import dim_mark
from outlier_features.figures.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    Drawing,
    decades,
    log_axis,
    panels,
    say_nothing_here,
    set_panel_dim,
)
from outlier_features.origin.origin_findings import (
    STEPS,
    explosion_sentence,
    ladders,
    traced_population,
    traced_rule,
    where_the_ladder_stops,
)
from outlier_features.wording import count, listing, number, percent

MAX_LADDERS = 8
NEURONS = 8
_SERIES = (
    ("max_abs", "max |x|, the sequence", VERMILLION, "circle", "solid"),
    ("traced_max_abs", "max |x|, the token", ORANGE, "square", "dash"),
    ("median_abs", "median |x|, the sequence", BLUE, "x", "solid"),
    ("traced_median_abs", "median |x|, the token", SKY, "diamond", "dash"),
)
_FACTORS = ("act_gate", "mlp_up")

Ladder = tuple[int, int, str, list[dict[str, Any]]]  # dim, layer, step, rows


def origin(rows: pl.DataFrame, neurons: pl.DataFrame, rules: Collection[str]) -> Drawing:
    """For each traced dim and each layer where it steps: the MLP's checkpoints, and the neurons that feed the dim.

    rules   those that list massive activations
    """
    dims = rows["target_dim"].unique(maintain_order=True).to_list()
    every: list[Ladder] = [(dim, *ladder) for dim in dims for ladder in ladders(rows, dim)]
    known = [ladder for ladder in every if not all(row["absent"] for row in ladder[-1])]
    sites = [name for name in rows["checkpoint"].unique(maintain_order=True) if name not in _FACTORS]
    drawing = Drawing(
        "origin",
        "Inside the MLP where a dimension steps",
        listing(sites) if sites else "none",
        traced_rule(rows, rules),
        traced_population(rows),
        "Left: |x| at the checkpoints of the MLP, over all positions of the traced sequence and at the traced token; "
        "open marks are the two factors of a gated MLP, beside the way through. Right: activation x weight of the "
        "neurons that write most into the dimension at the token; with the bias and all others they sum to what the "
        "MLP's last linear writes."
        + (f" {count(len(known) - MAX_LADDERS, 'more ladder')} in the tables." if len(known) > MAX_LADDERS else ""),
    )
    if not every:
        return drawing.empty("Nothing is drawn: no dimension was traced.")
    if not known:
        why = dict.fromkeys(where_the_ladder_stops(layer, ladder) for _, layer, _, ladder in every)
        return drawing.empty(" ".join(["Nothing is drawn.", *filter(None, why)]))
    views = {"all": _figure(known[:MAX_LADDERS], neurons)}
    most = max(len(checkpoints) for *_, checkpoints in known)
    return replace(drawing, views=views, data=rows, min_width=max(800, 130 * most), finding=_finding(known, neurons))


def _finding(known: Sequence[Ladder], neurons: pl.DataFrame) -> str:
    """Which two neurons write most into the first dim, in the layer whose MLP writes most; else where in the MLP the
    largest |x| grows."""
    first = [ladder for ladder in known if ladder[0] == known[0][0]]
    parts_of = {layer: neurons.filter(target_dim=dim, layer=layer) for dim, layer, *_ in first}
    dim, layer, _, rows = max(first, key=lambda ladder: abs(float(parts_of[ladder[1]]["contribution"].sum())))
    parts = parts_of[layer]
    ranked = parts.drop_nulls("neuron").sort("rank")
    total = float(parts["contribution"].sum())
    if ranked.is_empty() or not total:
        return explosion_sentence(layer, rows)
    named = listing(
        f"{percent(share)} from neuron {neuron}"
        for neuron, share in ranked.head(2).select("neuron", "share").iter_rows()
    )
    written = f"Of the {number(total)} that the MLP of layer {layer} writes into dimension {dim_mark(dim)}"
    return f"{written} at its traced token: {named}."


def _figure(shown: Sequence[Ladder], neurons: pl.DataFrame) -> go.Figure:
    figure = panels(
        [250] * len(shown),
        ["checkpoints of the MLP", "neurons that feed the dimension at the token"],
        shared_xaxes=False,
        shared_yaxes=False,
        gap=64,
        horizontal_spacing=0.13,
    )
    for row, (dim, layer, step, rows) in enumerate(shown, start=1):
        for column in (1, 2):
            set_panel_dim(figure, dim, row, column)
        _add_ladder(figure, rows, row)
        title = f"dim {dim}, layer {layer}<br>({STEPS[step]})<br>|x| (activation)"
        figure.update_yaxes(title_text=title, row=row, col=1)
        _add_neurons(figure, neurons.filter(target_dim=dim, layer=layer), row)
        figure.update_yaxes(title_text=f"written into dim {dim}<br>(activation)", row=row, col=2)
    figure.update_xaxes(title_text="checkpoint, in order", row=len(shown), col=1)
    figure.update_xaxes(title_text="neuron of the MLP", row=len(shown), col=2)
    return figure


def _add_ladder(figure: go.Figure, rows: Sequence[dict[str, Any]], row: int) -> None:
    present = [one for one in rows if one["max_abs"] is not None]
    names = [one["checkpoint"] for one in present]
    for key, name, colour, symbol, dash in _SERIES:
        style = {"legendgroup": key, "name": name, "row": row, "col": 1, "hovertemplate": "%{y:.5g}"}
        way = [one for one in present if one["checkpoint"] not in _FACTORS]
        figure.add_scatter(
            x=[one["checkpoint"] for one in way], y=[one[key] or None for one in way], mode="lines+markers",
            showlegend=row == 1, line={"color": colour, "width": 1.8, "dash": dash},
            marker={"symbol": symbol, "size": 7}, **style,
        )  # fmt: skip
        beside = [one for one in present if one["checkpoint"] in _FACTORS]
        if beside:
            figure.add_scatter(
                x=[one["checkpoint"] for one in beside], y=[one[key] or None for one in beside], mode="markers",
                showlegend=False, marker={"symbol": f"{symbol}-open", "color": colour, "size": 9}, **style,
            )  # fmt: skip
    positive = [one[key] for one in present for key, *_ in _SERIES if one[key]]
    low, high = decades(positive or [1.0])
    figure.update_yaxes(**log_axis(low, high), row=row, col=1)
    figure.update_xaxes(categoryorder="array", categoryarray=names, row=row, col=1)


def _add_neurons(figure: go.Figure, neurons: pl.DataFrame, row: int) -> None:
    if neurons.is_empty():
        say_nothing_here(figure, "the MLP has no neurons of its own here", row, 2)
        return
    ranked = neurons.drop_nulls("neuron").sort("rank")
    first, rest = ranked.head(NEURONS), ranked.slice(NEURONS)
    bias = neurons.filter(pl.col("neuron").is_null())
    bars = [(str(one["neuron"]), one["contribution"], one["share"]) for one in first.iter_rows(named=True)]
    bars += [("others", float(rest["contribution"].sum()), float(rest["share"].sum()))] if len(rest) else []
    bars += [("bias", float(bias["contribution"].sum()), float(bias["share"].sum()))]
    figure.add_bar(
        x=[name for name, *_ in bars], y=[value for _, value, _ in bars], showlegend=False,
        marker={"color": [ORANGE] * len(first) + [GREY] * (len(bars) - len(first)),
                "line": {"color": INK, "width": 0.5}},
        customdata=[[share] for *_, share in bars],
        hovertemplate="%{x}: %{y:.5g} (%{customdata[0]:.2%})<extra></extra>",
        row=row, col=2,
    )  # fmt: skip
    figure.update_xaxes(type="category", row=row, col=2)
    figure.update_yaxes(zeroline=True, zerolinecolor=GREY, tickformat=",", row=row, col=2)
