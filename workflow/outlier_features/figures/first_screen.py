"""The figure of the report's first screen: the dim that stands out most, over the layers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.dim_marks import dim_mark
from outlier_features.figures.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    VERMILLION,
    Drawing,
    add_threshold,
    decades,
    log_axis,
    panels,
    quoted_label,
    set_layer_axis,
)
from outlier_features.model.bases import RESID_POST
from outlier_features.origin.origin_findings import PARTS, TENTH, place
from outlier_features.populations import population_title
from outlier_features.summary.first_words import Lead
from outlier_features.wording import number

NAMED = 4  # parts that write or remove the dim
HEIGHT, SINKS_HEIGHT = 300, 90
Tables = Mapping[str, pl.DataFrame]


def first_screen(tables: Tables, first: Lead | None, sites: Sequence[str]) -> Drawing:
    """The dim by layer: at the token where it was traced, with what writes and what removes it, else its largest |x|;
    the sinks of the same layers below. Where nothing stands out, the largest |x| of all over the median.

    sites   those of the dim's rule that the run has
    """
    if first is None:
        return _quiet(tables["layers"])
    life = tables["lifecycle"].filter(target_dim=first.dim) if "lifecycle" in tables else pl.DataFrame()
    sinks = _sinks(tables)
    drawing = Drawing(
        "first-screen",
        f"Dimension {dim_mark(first.dim)} over the layers",
        RESID_POST,
        first.rule.name,
        population_title("all"),
        "",
    )
    if len(life):
        figure, text = _traced(life, first, sinks)
        token = f"{population_title('all')}, {place(life)}"
        return replace(drawing, population=token, text=text, views={"all": figure}, data=life)
    site = sites[0]
    rows = tables["emergence"].filter(population="all", site=site, dim=first.dim).sort("layer")
    if not len(rows):
        return drawing.empty("Nothing is drawn: the table emergence does not have the dimension.")
    figure = _largest(rows, first, site, sinks)
    text = f"The largest |x| of dimension {dim_mark(first.dim)} on {site} in each layer, over all tokens." + _below(
        sinks
    )
    if first.rule.scale is None:
        text += f" Dashed: the threshold of rule {first.rule.name}."
    return replace(drawing, sites=site, text=text, views={"all": figure}, data=rows)


def _sinks(tables: Tables) -> pl.DataFrame:
    """By layer, how often a head gives the first token more than the threshold, over heads and sequences."""
    if "sinks" not in tables:
        return pl.DataFrame()
    first = tables["sinks"].filter(pl.col("token") == 0, ~pl.col("learned"))
    return first.group_by("layer").agg(pl.col("sink_rate").mean()).sort("layer")


def _grid(title: str, sinks: pl.DataFrame, last: int) -> go.Figure:
    heights = [HEIGHT, SINKS_HEIGHT] if len(sinks) else [HEIGHT]
    figure = panels(heights, [title])
    figure.update_layout(showlegend=False, hovermode="x unified", margin_t=34, height=figure.layout.height - 30)
    if len(sinks):
        figure.add_bar(
            x=sinks["layer"].to_list(),
            y=[100 * rate for rate in sinks["sink_rate"]],
            marker={"color": BLUE},
            name="heads with a sink at the first token",
            hovertemplate="%{y:.3g} %",
            row=2,
            col=1,
        )
        figure.update_yaxes(title_text="heads that attend<br>to the first token", range=[0, 100], ticksuffix=" %",
                            dtick=50, row=2, col=1)  # fmt: skip
    set_layer_axis(figure, last, len(heights))
    return figure


def _traced(life: pl.DataFrame, first: Lead, sinks: pl.DataFrame) -> tuple[go.Figure, str]:
    after = life.filter(part="resid_post").sort("layer")
    values = dict(after.select("layer", "value").iter_rows())
    last = max(values)
    sequence, token, text = life.select("sequence", "traced_token", "token_text").row(0)
    named = "" if text is None else f" ({quoted_label(text, 12)})"
    figure = _grid(f"at position {token} of sequence {sequence}{named}", sinks, last)
    figure.add_scatter(
        x=[*values], y=[*values.values()], mode="lines+markers", name=f"dimension {first.dim} after the layer",
        line={"color": VERMILLION, "width": 2.6}, marker={"size": 5}, fill="tozeroy",
        fillcolor="rgba(213, 94, 0, 0.10)", hovertemplate="%{y:,.5g}", row=1, col=1,
    )  # fmt: skip
    figure.update_yaxes(title_text="x (activation)", tickformat=",", zeroline=True, zerolinecolor=GREY, row=1, col=1)
    low, high = min(0.0, *values.values()), max(0.0, *values.values())
    room = 0.18 * (high - low or 1.0)
    figure.update_yaxes(range=[low - (room if low < 0 else 0.05 * room), high + (room if high > 0 else 0.05 * room)],
                        row=1, col=1)  # fmt: skip
    _annotate(figure, _changes(life, values), values, (low, high))
    text = (
        f"The value of dimension {dim_mark(first.dim)} after each layer, at one token: {place(life)}. Named are the "
        f"parts that change it by at least a tenth of its largest |x|, at most {NAMED}.{_below(sinks)}"
    )
    return figure, text


def _annotate(
    figure: go.Figure, groups: list[list[dict[str, Any]]], values: Mapping[int, float], ends: tuple[float, float]
) -> None:
    """What writes or removes the dim, in boxes between curve and zero where they fit, of neighbours at two heights."""
    before = None
    for group in groups:
        first, verb = group[0], "writes" if group[0]["grows"] else "removes"
        lines = [f"{PARTS[first['part']]} of layer {first['layer']}", f"{verb} {_amount(first)}"]
        for row in group[1:]:
            part = "that" if row["part"] == first["part"] else PARTS[row["part"]]
            lines += [f"{part} of layer {row['layer']} {_amount(row)}"]
        x, y = first["layer"], values[first["layer"]]
        high = abs(y) > 0.3 * (ends[1] - ends[0])
        near = before is not None and x - before < max(values) / 2
        before = None if near else x
        side, down = -1 if x > max(values) / 2 else 1, 1 if (y >= 0) == high else -1  # on the page
        figure.add_annotation(
            text="<br>".join(lines), x=x, y=y, ax=62 * side, ay=down * (28 + 8 * len(lines) + 46 * near),
            xref="x", yref="y", showarrow=True, arrowhead=2, arrowsize=0.8, arrowwidth=1.4, arrowcolor=INK,
            font={"size": 12, "color": INK}, bgcolor="white", bordercolor=ORANGE if first["grows"] else BLUE,
            borderwidth=1.5, borderpad=3, row=1, col=1,
        )  # fmt: skip


def _amount(row: Mapping[str, Any]) -> str:
    return number(row["value"] if row["grows"] else abs(row["value"]))


def _changes(life: pl.DataFrame, values: Mapping[int, float]) -> list[list[dict[str, Any]]]:
    """The parts that change the dim most, by layer, those of neighbouring layers that do the same together."""
    peak = max(map(abs, values.values()))
    added = life.filter(~pl.col("part").is_in(["resid_pre", "resid_post"])).to_dicts()
    large = [row for row in added if peak and abs(row["value"]) >= TENTH * peak]
    groups: list[list[dict[str, Any]]] = []
    for row in sorted(sorted(large, key=lambda row: -abs(row["value"]))[:NAMED], key=lambda row: row["layer"]):
        after = values[row["layer"]]
        row["grows"] = row["value"] * after > 0
        if groups and groups[-1][-1]["grows"] == row["grows"] and row["layer"] - groups[-1][-1]["layer"] <= 3:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _largest(rows: pl.DataFrame, first: Lead, site: str, sinks: pl.DataFrame) -> go.Figure:
    last = int(rows["layer"].max())  # type: ignore[arg-type]
    figure = _grid(f"largest over all tokens, {site}", sinks, last)
    figure.add_scatter(
        x=rows["layer"].to_list(), y=rows["max_abs"].to_list(), mode="lines+markers", name=f"dimension {first.dim}",
        line={"color": VERMILLION, "width": 2.6}, marker={"size": 5}, hovertemplate="%{y:,.5g}", row=1, col=1,
    )  # fmt: skip
    high = float(rows["max_abs"].max())  # type: ignore[arg-type]
    if first.rule.scale is None:
        add_threshold(figure, first.rule.threshold, first.rule.threshold, 1)
        high = max(high, first.rule.threshold)
    figure.update_yaxes(title_text="|x| (activation)", tickformat=",", range=[0, 1.12 * high], row=1, col=1)
    return figure


def _quiet(layers: pl.DataFrame) -> Drawing:
    rows = layers.filter(pl.col("median") > 0, population="all").sort("site", "layer")
    drawing = Drawing(
        "first-screen",
        "The largest value of each layer, over the median",
        ", ".join(rows["site"].unique(maintain_order=True)) or "none",
        "none, every value counts",
        population_title("all"),
        "How many times the largest |x| of a layer is the median |x| there, at each site. Nothing stands out by the "
        "rules of this run.",
    )
    if not len(rows):
        return drawing.empty("Nothing is drawn: no layer has a median above 0.")
    rows = rows.with_columns(ratio=pl.col("max") / pl.col("median"))
    figure = _grid("largest |x| / median |x|", pl.DataFrame(), int(rows["layer"].max()))  # type: ignore[arg-type]
    colours = cycle((VERMILLION, BLUE, ORANGE, INK))
    for (site, part), colour in zip(rows.group_by("site", maintain_order=True), colours, strict=False):
        figure.add_scatter(
            x=part["layer"].to_list(), y=part["ratio"].to_list(), mode="lines+markers", name=str(site[0]),
            line={"color": colour, "width": 2}, hovertemplate="%{y:,.4g}", row=1, col=1,
        )  # fmt: skip
    figure.update_layout(showlegend=True, margin_t=64, height=figure.layout.height + 30)
    figure.update_yaxes(**log_axis(*decades([*rows["ratio"], 1.0])), title_text="ratio", row=1, col=1)
    return replace(drawing, views={"all": figure}, data=rows.select("site", "layer", "max", "median", "ratio"))


def _below(sinks: pl.DataFrame) -> str:
    if not len(sinks):
        return ""
    return (
        " Below: how often a head gives the first token so much of its attention that it is an attention sink, over "
        "the heads of the layer and the sequences."
    )
