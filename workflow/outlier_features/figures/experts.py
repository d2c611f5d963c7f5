"""The figures of a mixture-of-experts model: what each expert writes, and which ones make massive activations."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.style import (
    BLUE,
    GREY,
    ORANGE,
    PALE,
    SKY,
    VERMILLION,
    Drawing,
    add_legend_entry,
    decades,
    panels,
    power,
    set_dim_rows,
    set_layer_axis,
)
from outlier_features.populations import population_title
from outlier_features.rules.rule import Rule
from outlier_features.wording import capital, count, listing, number, percent

MAX_ROWS = 24
_SHARED = -2  # row of the shared expert, above the others
_SUPER = {"symbol": "circle-open", "size": 13, "color": VERMILLION, "line": {"width": 2.5}}
_BY_CODE = {"symbol": "square-open", "size": 16, "color": GREY, "line": {"width": 1.5}}
_PUBLISHED = {"symbol": "diamond-open", "size": 19, "color": ORANGE, "line": {"width": 2}}
_RANKS = ((BLUE, "largest expert"), (SKY, "second"), (ORANGE, "third"), (GREY, "other experts"))
_NAMED = 0.12  # share of the axis from which a bar bears its name


def expert_figures(
    experts: pl.DataFrame, routing: pl.DataFrame, blocks: int, rule: Rule, listing_rules: Collection[str]
) -> list[Drawing]:
    """Both figures, or none for a run without experts; `listing_rules` list massive activations."""
    return [] if experts.is_empty() else [expert_map(experts, blocks, rule), routed_parts(routing, listing_rules)]


def expert_map(experts: pl.DataFrame, blocks: int, rule: Rule) -> Drawing:
    """Max |expert_out| of every expert in every layer, super experts marked."""
    shared = experts.filter(part="shared")
    text = (
        "Largest |x| of each expert's down-projection output over all sequences run, before the router's weight. "
        f"Circles: {rule.noun}s ({rule.criteria()}, in a layer that forms massive activations). Squares: {rule.noun}s "
        "by the authors' code, which ranks all experts of the first three quarters of the layers alone. A grey cell: "
        "no token chose the expert, or the layer has none."
    )
    if not shared.is_empty():
        text += " The row at the top is the shared expert, which every token goes through."
    if experts["published"].any():
        text += f" Diamonds: published as {rule.noun}s of this model ({rule.source})."
    drawing = Drawing("experts", "What each expert writes", "expert_out", rule.name, population_title("all"), text)
    return replace(drawing, views={"all": _map(experts, blocks)}, data=experts, finding=_largest_expert(experts, rule))


def _largest_expert(experts: pl.DataFrame, rule: Rule) -> str:
    """The expert that writes most, beside the middle one, and how many the rule selects."""
    known = experts.drop_nulls("max_abs").sort("max_abs")
    if known.is_empty():
        return ""
    most, chosen = known.row(-1, named=True), experts.filter("super_expert")
    name = "the shared expert" if most["part"] == "shared" else f"expert {most['expert']}"
    middle = float(known["max_abs"].median())  # type: ignore[arg-type]
    return (
        f"{capital(name)} of layer {most['layer']} writes the largest |x|, {number(most['max_abs'])} (the median over "
        f"experts is {number(middle)}); {count(len(chosen), rule.noun)} by rule {rule.name}."
    )


def _map(experts: pl.DataFrame, blocks: int) -> go.Figure:
    total = int(experts["expert"].max()) + 1  # type: ignore[arg-type]
    rows = [_SHARED, -1] if (experts["part"] == "shared").any() else []  # an empty row between
    rows += range(total)
    figure = panels([min(720, max(200, 8 * len(rows)))], [population_title("all")])
    placed = experts.with_columns(row=pl.when(pl.col("part") == "shared").then(_SHARED).otherwise(pl.col("expert")))
    cells = {(row, layer): value for row, layer, value in placed.select("row", "layer", "max_abs").rows()}
    logs = [[_log(cells.get((row, layer))) for layer in range(blocks)] for row in rows]
    low, high = decades([value for value in cells.values() if value])
    figure.add_heatmap(
        x=list(range(blocks)),
        y=rows,
        z=logs,
        customdata=[[[_name(row), number(cells.get((row, layer)))] for layer in range(blocks)] for row in rows],
        hovertemplate="%{customdata[0]}, layer %{x}<br>max |x| %{customdata[1]}<extra></extra>",
        hoverongaps=False,
        colorscale="Viridis",
        zmin=low,
        zmax=high,
        colorbar={"title": {"text": "max |x|"}, "tickvals": list(range(low, high + 1)),
                  "ticktext": [power(k) for k in range(low, high + 1)], "thickness": 12},
    )  # fmt: skip
    marks = (
        ("published", "published", _PUBLISHED),
        ("super_expert_code", "super expert by the authors' code", _BY_CODE),
        ("super_expert", "super expert", _SUPER),
    )
    for flag, title, marker in marks:
        marked = placed.filter(flag)
        figure.add_scatter(
            x=marked["layer"].to_list(),
            y=marked["row"].to_list(),
            customdata=[[_name(row), number(value)] for row, value in marked.select("row", "max_abs").rows()],
            hovertemplate=f"{title}: %{{customdata[0]}}, layer %{{x}}<br>max |x| %{{customdata[1]}}<extra></extra>",
            mode="markers",
            marker=marker,
            cliponaxis=False,
            showlegend=False,
        )
        if len(marked):
            add_legend_entry(figure, title, marker=marker)
    step = max(1, 2 ** math.ceil(math.log2(total / 16)))
    ticks = [row for row in rows if row == _SHARED or (row >= 0 and row % step == 0)]
    figure.update_yaxes(
        tickvals=ticks, ticktext=["shared" if row == _SHARED else str(row) for row in ticks], showgrid=False,
        range=[total - 0.5, rows[0] - 0.5], title_text="expert (from 0)",
    )  # fmt: skip
    figure.update_layout(plot_bgcolor=PALE, margin_r=90)
    set_layer_axis(figure, blocks - 1, 1)
    figure.update_xaxes(showgrid=False)
    return figure


def _log(value: float | None) -> float | None:
    return math.log10(value) if value else None


def _name(row: int) -> str:
    return "shared expert" if row < 0 else f"expert {row}"


def routed_parts(routing: pl.DataFrame, rules: Collection[str]) -> Drawing:
    """How the experts share in the MLP's output at each dim's largest massive activation."""
    forming = routing.filter("forms_massive")
    places = forming.select("dim", "layer").unique(maintain_order=True).rows()
    shown = places[:MAX_ROWS]
    text = (
        "Each bar is the MLP's output at the largest massive activation of a dimension, in a layer that forms it "
        "(mlp_out there has its sign and at least a tenth of its magnitude), split into the parts that sum to it: each "
        "chosen expert's output times the router's weight, and the shared expert's. A part against the output's sign "
        "lies left of zero."
    )
    if len(places) > len(shown):
        text += f" Shown: the {len(shown)} of the largest activations out of {count(len(places), 'bar')}."
    title, population = "Experts that make massive activations", population_title("all")
    drawing = Drawing("routing", title, "expert_out", listing(rules), population, text)
    if not shown:
        return drawing.empty("Nothing is drawn: no layer with experts forms a massive activation.")
    return replace(drawing, views={"all": _bars(forming, shown)}, data=forming, finding=_largest_part(forming))


def _largest_part(forming: pl.DataFrame) -> str:
    """What writes most of the MLP's output at the largest massive activation, and of how many it is one expert."""
    by_place = forming.sort("share").unique(["dim", "layer"], keep="last", maintain_order=True)
    first = forming.row(0, named=True)
    most = by_place.filter(dim=first["dim"], layer=first["layer"]).row(0, named=True)
    name = "the shared expert" if most["part"] == "shared" else f"expert {most['expert']}"
    half = int((by_place["share"] >= 0.5).sum())
    return (
        f"{capital(name)} writes {percent(most['share'])} of what the MLP of layer {most['layer']} adds to dimension "
        f"{most['dim']} at its largest massive activation; one of them writes at least half in {number(half)} of "
        f"{count(len(by_place), 'bar')}."
    )


def _bars(forming: pl.DataFrame, shown: Sequence[tuple[int, int]]) -> go.Figure:
    figure = panels([max(90, 30 * len(shown) + 20)], [population_title("all")])
    bars: dict[str, list[dict[str, Any]]] = {}
    ends = [0.0, 1.0]
    for at, (dim, layer) in enumerate(shown):
        rank = 0
        parts = forming.filter(dim=dim, layer=layer).to_dicts()
        for part in parts:
            colour = VERMILLION if part["part"] == "shared" else _RANKS[min(rank, 3)][0]
            rank += part["part"] == "expert"
            bars.setdefault(colour, []).append({**part, "at": at})
        ends += [sum(p["share"] for p in parts if (p["share"] > 0) == positive) for positive in (True, False)]
    low, high = min(ends), max(ends)
    for colour, parts in bars.items():
        names = ["shared" if part["part"] == "shared" else f"expert {part['expert']}" for part in parts]
        wide = [abs(part["share"]) >= _NAMED * (high - low) for part in parts]
        figure.add_bar(
            x=[part["share"] for part in parts],
            y=[part["at"] for part in parts],
            orientation="h",
            width=0.7,
            text=[name if fits else "" for name, fits in zip(names, wide, strict=True)],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            customdata=[
                [name, part["dim"], part["layer"], number(part["weight"]), number(part["value"]),
                 number(part["weighted"]), percent(part["share"]), part["sequence"], part["token"]]
                for name, part in zip(names, parts, strict=True)
            ],
            hovertemplate="%{customdata[0]}, layer %{customdata[2]}, dimension %{customdata[1]}<br>sequence "
            "%{customdata[7]}, position %{customdata[8]}<br>weight %{customdata[3]} x value %{customdata[4]} = "
            "%{customdata[5]}<br>%{customdata[6]} of the MLP's output<extra></extra>",
            marker={"color": colour, "line": {"color": "white", "width": 1}},
            showlegend=False,
        )  # fmt: skip
    for colour, title in (*_RANKS, (VERMILLION, "shared expert")):
        if colour in bars:
            add_legend_entry(figure, title, marker={"symbol": "square", "size": 12, "color": colour})
    figure.update_layout(barmode="relative", uniformtext={"minsize": 10, "mode": "show"}, margin_l=150)
    set_dim_rows(figure, [dim for dim, _ in shown], [f"dim {dim}, layer {layer}" for dim, layer in shown])
    figure.update_yaxes(title_text="massive activation")
    figure.update_xaxes(title_text="share of the MLP's output, before a post-norm", tickformat=".0%",
                        range=[low - 0.03 * (high - low), high + 0.03 * (high - low)])  # fmt: skip
    return figure
