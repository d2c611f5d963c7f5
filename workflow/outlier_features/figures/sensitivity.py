"""The figure of how many dims and pairs pass under other criteria."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.style import INK, VERMILLION, Drawing, above, panels
from outlier_features.rules import LAYER_READINGS, POSITION_READINGS
from outlier_features.wording import listing, number, percent

_SHARES = ("layer_share", "position_share")
# So pale that black numbers can be read on every cell.
_COLOURS = [[0.0, "#FFFFFF"], [0.02, "#EAF3FA"], [1.0, "#7DB8DC"]]

Cells = Sequence[tuple[float, float]]


def sensitivity(table: pl.DataFrame, criteria: Mapping[str, Any], populations: Sequence[str]) -> Drawing:
    """Dims and pairs that pass, by threshold, layer share and position share; a menu for the other readings."""
    rules = table["rule"].unique().sort().to_list()
    drawing = Drawing(
        "sensitivity",
        "Sensitivity to the criteria",
        "; ".join(table["sites"].unique(maintain_order=True).to_list()).replace("+", " + ") or "none",
        f"{listing(rules) if rules else 'dettmers'}, with other criteria",
        listing(populations),
        "In each cell, in bold: dimensions that pass in at least one sequence; below: (sequence, dimension) pairs "
        f"that pass. Drawn at first by the readings {criteria['layer_reading']} and {criteria['position_reading']}, "
        f"which the run uses; the menu has the others. {_on_grid(table, criteria)}",
    )
    if table.is_empty():
        return drawing.empty("Nothing is drawn: the rule was not applied, as its sites are not in this run.")
    views = {population: _figure(table, criteria, population) for population in populations}
    return replace(drawing, views=views, data=table, min_width=110 + 34 * len(_cells(table)))


def _on_grid(table: pl.DataFrame, criteria: Mapping[str, Any]) -> str:
    text = (
        f"|x| >= {number(criteria['threshold'])}, {percent(criteria['layer_share'])} of the layers and "
        f"{percent(criteria['position_share'])} of the positions"
    )
    if all((table[name] == criteria[name]).any() for name in ("threshold", *_SHARES)):
        return f"Outlined, whatever the reading: the run's own criteria, {text}."
    return f"The run's own criteria, {text}, are not on the grid."


def _cells(table: pl.DataFrame) -> Cells:
    """Columns of the grid: layer share, then position share."""
    return table.select(_SHARES).unique().sort(_SHARES).rows()


def _figure(table: pl.DataFrame, criteria: Mapping[str, Any], population: str) -> go.Figure:
    thresholds, cells, keys = table["threshold"].unique().sort().to_list(), _cells(table), list(_readings(table))
    figure = panels([max(36 * len(thresholds), 130)], [""])
    own = (keys[0][0], criteria["layer_reading"], criteria["position_reading"])
    most = math.log10(1 + max(1, *table["dims"].to_list()))
    for key in keys:
        reading = dict(zip(("rule", "layer_reading", "position_reading"), key, strict=True))
        heat = _heat(table.filter(population=population, **reading), thresholds, cells, most)
        figure.add_trace(heat.update(visible=key == own), row=1, col=1)
    figure.update_layout(margin_l=108)
    _outline(figure, thresholds, cells, criteria)
    _label_axes(figure, thresholds, cells, population)
    _label_groups(figure, cells)
    _add_menu(figure, keys, keys.index(own))
    return figure


def _readings(table: pl.DataFrame) -> Iterator[tuple[str, str, str]]:
    for rule in table["rule"].unique().sort().to_list():
        for layer_reading in LAYER_READINGS:
            for position_reading in POSITION_READINGS:
                yield rule, layer_reading, position_reading


def _heat(part: pl.DataFrame, thresholds: Sequence[float], cells: Cells, most: float) -> go.Heatmap:
    rows = part.select("threshold", *_SHARES, "dims", "pairs").rows()
    counts = {(threshold, *shares): (dims, pairs) for threshold, *shares, dims, pairs in rows}
    grid = [[(threshold, cell, counts.get((threshold, *cell))) for cell in cells] for threshold in thresholds]
    return go.Heatmap(
        x=list(range(len(cells))),
        y=list(range(len(thresholds))),
        z=[[None if found is None else math.log10(1 + found[0]) for *_, found in line] for line in grid],
        text=[[_text(found) for *_, found in line] for line in grid],
        texttemplate="%{text}",
        textfont={"size": 11, "color": INK},
        customdata=[
            [[threshold, percent(cell[0]), percent(cell[1]), *(found or ("", ""))] for threshold, cell, found in line]
            for line in grid
        ],
        hovertemplate="|x| ≥ %{customdata[0]}<br>layer share ≥ %{customdata[1]}<br>position share ≥ "
        "%{customdata[2]}<br>%{customdata[3]} dims, %{customdata[4]} pairs<extra></extra>",
        colorscale=_COLOURS,
        zmin=0,
        zmax=most,
        xgap=1,
        ygap=1,
        showscale=False,
    )


def _text(found: tuple[int, int] | None) -> str:
    return "" if found is None else f"<b>{_short(found[0])}</b><br>{_short(found[1])}"


def _short(items: int) -> str:
    """At most five characters; the hover text has the whole number."""
    return str(items) if items < 10000 else f"{items / 1000:.3g}k"


def _outline(figure: go.Figure, thresholds: Sequence[float], cells: Cells, criteria: Mapping[str, Any]) -> None:
    cell = (criteria["layer_share"], criteria["position_share"])
    if cell in cells and criteria["threshold"] in thresholds:
        x, y = cells.index(cell), thresholds.index(criteria["threshold"])
        line = {"color": VERMILLION, "width": 3}
        figure.add_shape(type="rect", x0=x - 0.5, x1=x + 0.5, y0=y - 0.5, y1=y + 0.5, line=line, row=1, col=1)


def _label_axes(figure: go.Figure, thresholds: Sequence[float], cells: Cells, population: str) -> None:
    figure.update_xaxes(
        tickvals=list(range(len(cells))),
        ticktext=[percent(position_share).removesuffix(" %") for _, position_share in cells],
        tickangle=0,
        range=[-0.5, len(cells) - 0.5],
        showgrid=False,
    )
    figure.update_xaxes(title_text="position share, at least (%)")
    figure.update_yaxes(
        tickvals=list(range(len(thresholds))),
        ticktext=[f"|x| ≥ {number(threshold)}" for threshold in thresholds],
        range=[len(thresholds) - 0.5, -0.5],
        showgrid=False,
        title_text=f"population {population}",
    )


def _label_groups(figure: go.Figure, cells: Cells) -> None:
    """The layer share over the columns that have it, and a line between these groups."""
    groups: dict[float, list[int]] = {}
    for index, (layer_share, _) in enumerate(cells):
        groups.setdefault(layer_share, []).append(index)
    for layer_share, members in groups.items():
        figure.add_annotation(
            text=f"layers ≥ {percent(layer_share)}", x=(members[0] + members[-1]) / 2, y=1, xref="x", yref="paper",
            yanchor="bottom", showarrow=False, font={"size": 12},
        )  # fmt: skip
        if members[0]:
            figure.add_vline(x=members[0] - 0.5, line={"color": INK, "width": 1}, row=1, col=1)


def _add_menu(figure: go.Figure, keys: Sequence[tuple[str, str, str]], own: int) -> None:
    buttons = [
        {
            "label": f"{rule}: layers by {layer_reading}, positions by {position_reading}",
            "method": "update",
            "args": [{"visible": [other == index for other in range(len(keys))]}],
        }
        for index, (rule, layer_reading, position_reading) in enumerate(keys)
    ]
    menu = {"buttons": buttons, "active": own, "x": 0, "xanchor": "left", "y": above(figure), "yanchor": "bottom"}
    figure.update_layout(
        updatemenus=[{**menu, "bgcolor": "white", "font": {"size": 12}, "pad": {"t": 0, "b": 0, "l": -100}}]
    )
