"""The figure of how many dims and pairs pass under other criteria."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.style import INK, VERMILLION, Drawing, above, panels
from outlier_features.populations import over_population, population_title, population_titles
from outlier_features.rules.rule import GAIN, LAYER_RMS, SCALES, TOKEN_RMS
from outlier_features.rules.systematic import LAYER_READINGS, POSITION_READINGS, Systematic
from outlier_features.wording import capital, count, listing, number, percent

_SHARES = ("layer_share", "position_share")
# So pale that black numbers can be read on every cell.
_COLOURS = [[0.0, "#FFFFFF"], [0.02, "#EAF3FA"], [1.0, "#7DB8DC"]]

Cells = Sequence[tuple[float, float]]


def sensitivity(table: pl.DataFrame, rules: Mapping[str, Systematic], populations: Sequence[str]) -> Drawing:
    """Dims and pairs that pass, by threshold, layer share and position share; a menu for other rules and readings.

    rules   those whose criteria are varied
    """
    varied = {name: rule for name, rule in rules.items() if (table["rule"] == name).any()}
    sites = table.select("rule", "sites").unique(maintain_order=True).rows()
    drawing = Drawing(
        "sensitivity",
        "Sensitivity to the criteria",
        "; ".join(f"{joined.replace('+', ' + ')} ({rule})" for rule, joined in sites) or "none",
        f"{listing(varied)}, with other criteria" if varied else "none",
        population_titles(populations),
        "In each cell, in bold: dimensions that pass in at least one sequence; below: (sequence, dimension) pairs "
        "that pass. Drawn at first for the first rule, by its own readings; the menu has the others. "
        "Outlined, whatever the reading: a rule's own criteria."
        + "".join(
            f" Those of {rule.name} are not on the grid." for rule in varied.values() if not _on_grid(table, rule)
        ),
    )
    if not varied:
        return drawing.empty("Nothing is drawn: no such rule was applied, as their sites are not in this run.")
    views = {population: _figure(table, varied, population) for population in populations}
    finding = _finding(table.filter(population=populations[0]), varied, populations[0])
    return replace(drawing, views=views, data=table, min_width=110 + 34 * len(_cells(table)), finding=finding)


def _finding(table: pl.DataFrame, rules: Mapping[str, Systematic], population: str) -> str:
    """How much the first rule's answer hangs on its threshold and shares, and on how layers are counted."""
    rule = next(iter(rules.values()))
    mine = table.filter(rule=rule.name)
    grid = mine.filter(layer_reading=rule.layer_reading, position_reading=rule.position_reading)
    text = f"{capital(over_population(population))}, rule {rule.name}"
    if _on_grid(table, rule):
        own = mine.filter(position_reading=rule.position_reading, threshold=rule.threshold,
                          **{name: getattr(rule, name) for name in _SHARES})  # fmt: skip
        by_reading = dict(own.select("layer_reading", "dims").iter_rows())
        text += f" selects {count(by_reading.pop(rule.layer_reading), 'dimension')} by its own criteria"
        text += "".join(f", {number(dims)} with layers counted as {name}" for name, dims in by_reading.items()) + ";"
    low, high = grid.select(pl.col("dims").min(), pl.col("dims").max().alias("most")).row(0)
    return f"{text} on the grid of thresholds and shares, from {number(low)} to {number(high)}."


def _on_grid(table: pl.DataFrame, rule: Systematic) -> bool:
    own = table.filter(rule=rule.name)
    return all((own[name] == getattr(rule, name)).any() for name in ("threshold", *_SHARES))


def _cells(table: pl.DataFrame) -> Cells:
    """Columns of the grid: layer share, then position share."""
    return table.select(_SHARES).unique().sort(_SHARES).rows()


def _figure(table: pl.DataFrame, rules: Mapping[str, Systematic], population: str) -> go.Figure:
    cells, keys = _cells(table), list(_readings(rules))
    thresholds = {name: table.filter(rule=name)["threshold"].unique().sort().to_list() for name in rules}
    figure = panels([max(36 * max(map(len, thresholds.values())), 130)], [""])
    first = next(iter(rules.values()))
    own = (first.name, first.layer_reading, first.position_reading)
    most = math.log10(1 + max(1, *table["dims"].to_list()))
    for key in keys:
        reading = dict(zip(("rule", "layer_reading", "position_reading"), key, strict=True))
        heat = _heat(table.filter(population=population, **reading), rules[key[0]], thresholds[key[0]], cells, most)
        figure.add_trace(heat.update(visible=key == own), row=1, col=1)
    figure.update_layout(margin_l=108)
    _label_axes(figure, cells, population)
    _label_groups(figure, cells)
    between = list(figure.layout.shapes)
    layouts = {
        name: {
            "shapes": [*between, *_outline(thresholds[name], cells, rule)],
            **{f"yaxis.{key}": value for key, value in _threshold_axis(rule, thresholds[name]).items()},
        }
        for name, rule in rules.items()
    }
    figure.update_layout(shapes=layouts[first.name]["shapes"])
    figure.update_yaxes(**_threshold_axis(first, thresholds[first.name]))
    _add_menu(figure, keys, keys.index(own), layouts)
    return figure


def _readings(rules: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    for rule in rules:
        for layer_reading in LAYER_READINGS:
            for position_reading in POSITION_READINGS:
                yield rule, layer_reading, position_reading


def _heat(part: pl.DataFrame, rule: Systematic, thresholds: Sequence[float], cells: Cells, most: float) -> go.Heatmap:
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
            [[number(threshold), *map(percent, cell), _counted(found)] for threshold, cell, found in line]
            for line in grid
        ],
        hovertemplate=f"{SCALES[rule.scale]} ≥ %{{customdata[0]}}<br>"
        "layer share ≥ %{customdata[1]}<br>position share ≥ "
        "%{customdata[2]}<br>%{customdata[3]}<extra></extra>",
        colorscale=_COLOURS,
        zmin=0,
        zmax=most,
        xgap=1,
        ygap=1,
        showscale=False,
    )


def _counted(found: tuple[int, int] | None) -> str:
    return "" if found is None else f"{count(found[0], 'dim')}, {count(found[1], 'pair')}"


def _text(found: tuple[int, int] | None) -> str:
    return "" if found is None else f"<b>{_short(found[0])}</b><br>{_short(found[1])}"


def _short(items: int) -> str:
    """At most five characters; the hover text has the whole number."""
    return str(items) if items < 10000 else f"{items / 1000:.3g}k"


def _outline(thresholds: Sequence[float], cells: Cells, rule: Systematic) -> list[dict[str, Any]]:
    cell = (rule.layer_share, rule.position_share)
    if cell not in cells or rule.threshold not in thresholds:
        return []
    x, y = cells.index(cell), thresholds.index(rule.threshold)
    line = {"color": VERMILLION, "width": 3}
    place = {"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
    return [{"type": "rect", "xref": "x", "yref": "y", "line": line, **place}]


def _threshold_axis(rule: Systematic, thresholds: Sequence[float]) -> dict[str, Any]:
    sign = {None: "|x|", TOKEN_RMS: "|x| / RMS", LAYER_RMS: "|x| / RMS", GAIN: "|x / g|"}[rule.scale]
    return {
        "tickvals": list(range(len(thresholds))),
        "ticktext": [f"{sign} ≥ {number(threshold)}" for threshold in thresholds],
        "range": [len(thresholds) - 0.5, -0.5],
    }


def _label_axes(figure: go.Figure, cells: Cells, population: str) -> None:
    figure.update_xaxes(
        tickvals=list(range(len(cells))),
        ticktext=[percent(position_share).removesuffix(" %") for _, position_share in cells],
        tickangle=0,
        range=[-0.5, len(cells) - 0.5],
        showgrid=False,
    )
    figure.update_xaxes(title_text="position share, at least (%)")
    figure.update_yaxes(showgrid=False, title_text=population_title(population))


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


def _add_menu(
    figure: go.Figure, keys: Sequence[tuple[str, str, str]], own: int, layouts: Mapping[str, Mapping[str, Any]]
) -> None:
    buttons = [
        {
            "label": f"{rule}: layers by {layer_reading}, positions by {position_reading}",
            "method": "update",
            "args": [{"visible": [other == index for other in range(len(keys))]}, layouts[rule]],
        }
        for index, (rule, layer_reading, position_reading) in enumerate(keys)
    ]
    menu = {"buttons": buttons, "active": own, "x": 0, "xanchor": "left", "y": above(figure), "yanchor": "bottom"}
    figure.update_layout(
        updatemenus=[{**menu, "bgcolor": "white", "font": {"size": 12}, "pad": {"t": 0, "b": 0, "l": -100}}]
    )
