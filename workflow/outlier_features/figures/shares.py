"""The figure of layer share against position share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.dim_marks import dim_mark
from outlier_features.figures.style import (
    BLUE,
    GREY,
    INK,
    VERMILLION,
    Drawing,
    add_legend_entry,
    decades,
    label,
    names_of_dims,
    of_dims,
    panels,
    say_nothing_here,
)
from outlier_features.files.columns import READINGS
from outlier_features.populations import over_population, population_title, population_titles
from outlier_features.rules.systematic import Systematic
from outlier_features.wording import capital, count, number, percent

MAX_POINTS = 2000
MAX_LABELS = 12
NAMES_IN_LABEL = 3
_POINTS = (
    (False, "with a hit, not selected", {"color": GREY, "size": 8, "symbol": "circle-open", "line": {"width": 1.5}}),
    (True, "selected", {"color": VERMILLION, "size": 11, "line": {"color": INK, "width": 1}}),
)
_RIGHT, _TOP = 1.05, 0.12  # the top as a power of ten
_LETTER, _LINE = 0.0095, 0.06  # of the axes: a letter's width, a line's height, at the width of a page


def shares(
    dims: pl.DataFrame,
    sites: Mapping[str, Sequence[str]],
    criteria: Mapping[str, Systematic],
    populations: Sequence[str],
) -> Drawing:
    """Layer share against position share of every dim with a hit, and the region in which each systematic rule selects.

    sites      of this run that each rule was applied to
    criteria   the rules
    """
    found = dims.filter(pl.col("rule").is_in([*criteria]))
    applied = {rule: sites[rule] for rule in criteria if sites[rule]}
    rules = [rule for rule in applied if (found["rule"] == rule).any()]
    readings = dict.fromkeys(name for rule in criteria.values() for name in (rule.layer_reading, rule.position_reading))
    meant = "; ".join(f"{name}: {READINGS[name]}" for name in readings)
    drawing = Drawing(
        "shares",
        "Layer share and position share",
        "; ".join(" + ".join(names) for names in applied.values()) or "none",
        "; ".join(f"{rule}, {criteria[rule].reaches}" for rule in applied) or "none",
        population_titles(populations),
        "Each point is a dimension with a hit; its layer share (across) and position share (up) are means over the "
        f"sequences with a hit, by the reading that the axis names ({meant}). Dashed: the criteria. They are applied "
        "to each sequence by itself, so a selected dimension can lie outside the "
        f"shaded region, and one inside it need not be selected.{_undrawn(found)}",
    )
    if not applied:
        return drawing.empty("Nothing is drawn: the rule was not applied, as its sites are not in this run.")
    if not rules:
        return drawing.empty("Nothing is drawn: no value on these sites reaches a rule's threshold.")
    views = {population: _figure(found, rules, criteria, population) for population in populations}
    columns = ("population", "rule", "sites", "dim", *(f"{name}_mean" for name in readings), "selected",
               "sequences_passing", "sequences", "max_abs")  # fmt: skip
    finding = _finding(found, rules, criteria, populations[0])
    return replace(drawing, views=views, data=found.select(columns), finding=finding)


def _finding(found: pl.DataFrame, rules: Sequence[str], criteria: Mapping[str, Systematic], population: str) -> str:
    """Of the dims with a hit how many pass, and the shares of the largest that does."""
    said = []
    for rule in rules:
        here = found.filter(rule=rule, population=population)
        chosen = here.filter("selected").sort("max_abs", "dim")
        text = f"{rule} selects {number(len(chosen))} of {count(len(here), 'dimension')} with a hit"
        if len(chosen):
            row, (x, y) = chosen.row(-1, named=True), _axes(criteria[rule])
            text += f"; the largest, {dim_mark(row['dim'])}, has them in {percent(row[x])} of the layers, "
            text += f"at {percent(row[y])} of the positions"
        said.append(text)
    return f"{capital(over_population(population))}, {'; '.join(said)}."


def _axes(rule: Systematic) -> tuple[str, str]:
    """The columns that are drawn across and up."""
    return f"{rule.layer_reading}_mean", f"{rule.position_reading}_mean"


def _undrawn(found: pl.DataFrame) -> str:
    hidden = [len(part) - MAX_POINTS for part in found.partition_by("rule", "population") if len(part) > MAX_POINTS]
    if not hidden:
        return ""
    return f" At most {MAX_POINTS:,} are drawn in a panel; {count(sum(hidden), 'point')} of the smallest |x| are not."


def _figure(
    found: pl.DataFrame, rules: Sequence[str], criteria: Mapping[str, Systematic], population: str
) -> go.Figure:
    figure = panels([340] * len(rules), [population_title(population)])
    up = [share for rule in rules for share in found.filter(rule=rule)[_axes(criteria[rule])[1]].to_list()]
    low, _ = decades([*up, *(criteria[rule].position_share or 1.0 for rule in rules)])
    for row, rule in enumerate(rules, start=1):
        x, y = _axes(criteria[rule])
        here = found.filter(rule=rule, population=population)
        here = here.sort(["selected", "max_abs", "dim"], descending=[True, True, False]).head(MAX_POINTS)
        if here.is_empty():
            say_nothing_here(figure, "no dimension has a hit", row, 1)
        _add_criteria(figure, criteria[rule], low, row)
        _add_points(figure, here, x, y, row)
        _add_names(figure, here, x, y, row, low)
        title = f"{label(rule)}<br>position share ({criteria[rule].position_reading})"
        figure.update_yaxes(title_text=title, row=row, col=1)
    ticks = [10.0**k for k in range(low, 1)]
    figure.update_yaxes(type="log", range=[low - 0.08, _TOP], tickvals=ticks, ticktext=[*map(percent, ticks)])
    across = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    figure.update_xaxes(range=[-0.03, _RIGHT], tickvals=across, ticktext=[*map(percent, across)])
    names = dict.fromkeys(criteria[rule].layer_reading for rule in rules)
    figure.update_xaxes(title_text=f"layer share ({' or '.join(names)})", row=len(rules))
    for _, title, marker in _POINTS:
        add_legend_entry(figure, title, marker=marker)
    return figure


def _add_criteria(figure: go.Figure, rule: Systematic, low: int, row: int) -> None:
    """Lines at the criteria, each with its value; a position share of 0 lies below any logarithmic axis."""
    layer_share, position_share = rule.layer_share, rule.position_share or 10.0 ** (low - 1)
    place: dict[str, Any] = {"row": row, "col": 1}
    figure.add_shape(
        type="rect", x0=layer_share, x1=_RIGHT, y0=position_share, y1=10**_TOP, fillcolor=BLUE, opacity=0.09,
        line_width=0, layer="below", **place,
    )  # fmt: skip
    line = {"color": GREY, "dash": "dash", "width": 1.2}
    figure.add_shape(type="line", x0=layer_share, x1=layer_share, y0=10.0 ** (low - 1), y1=10, line=line, **place)
    figure.add_shape(type="line", x0=-1, x1=2, y0=position_share, y1=position_share, line=line, **place)
    font: dict[str, Any] = {"showarrow": False, "font": {"size": 11, "color": GREY}}
    figure.add_annotation(
        text=f"layers ≥ {percent(layer_share)}", x=layer_share, y=low, xanchor="left", xshift=4, yanchor="bottom",
        **font, **place,
    )  # fmt: skip
    if rule.position_share:
        figure.add_annotation(
            text=f"positions ≥ {percent(position_share)}", x=_RIGHT, y=math.log10(position_share), xanchor="right",
            yanchor="top", **font, **place,
        )  # fmt: skip


def _add_points(figure: go.Figure, here: pl.DataFrame, x: str, y: str, row: int) -> None:
    for selected, title, marker in _POINTS:
        part = here.filter(pl.col("selected") == selected)
        figure.add_scatter(
            x=part[x].to_list(),
            y=part[y].to_list(),
            **of_dims(part["dim"].to_list()),
            customdata=[
                (dim, number(passing), count(sequences, "sequence"), percent(across), percent(up), number(size))
                for dim, passing, sequences, across, up, size in part.select(
                    "dim", "sequences_passing", "sequences", x, y, "max_abs"
                ).rows()
            ],
            hovertemplate="dimension %{customdata[0]}<br>layer share %{customdata[3]}, position share %{customdata[4]}"
            "<br>passes in %{customdata[1]} of %{customdata[2]} with a hit<br>max |x| %{customdata[5]}<extra></extra>",
            name=title,
            showlegend=False,
            mode="markers",
            marker=marker,
            row=row,
            col=1,
        )


def _add_names(figure: go.Figure, here: pl.DataFrame, x: str, y: str, row: int, low: int) -> None:
    """The numbers of some dims, the largest first; those that lie together share one label, if it covers no other."""
    named = here if len(here) <= MAX_LABELS else here.filter("selected")
    taken = [(across, across, math.log10(up)) for across, up in here.select(x, y).rows()]
    places: dict[tuple[int, int], list[tuple[float, float, int]]] = {}
    for across, up, dim in named.select(x, y, "dim").rows():
        places.setdefault((round(across * 8), round(math.log10(up) * 6)), []).append((across, up, dim))
    for together in list(places.values())[:MAX_LABELS]:
        _, up, _ = together[0]
        across = [across for across, *_ in together]
        rest = f" and {len(together) - NAMES_IN_LABEL} more" if len(together) > NAMES_IN_LABEL else ""
        left = max(across) > 0.6
        text = ", ".join(str(dim) for *_, dim in together[:NAMES_IN_LABEL]) + rest
        begin, width = (min(across) if left else max(across)), len(text) * _LETTER
        line = (begin - width, begin, math.log10(up)) if left else (begin, begin + width, math.log10(up))
        if any(_touch(line, other, (_TOP - low) * _LINE) for other in taken):
            continue
        taken.append(line)
        figure.add_annotation(
            text=text,
            name=names_of_dims(dim for *_, dim in together),
            x=begin,
            y=math.log10(up),
            showarrow=False,
            xanchor="right" if left else "left",
            xshift=-9 if left else 9,
            row=row,
            col=1,
        )


def _touch(one: tuple[float, float, float], other: tuple[float, float, float], height: float) -> bool:
    """Whether two labels or points, each from x to x at a height on the axes, would stand on each other."""
    return one[0] < other[1] and other[0] < one[1] and abs(one[2] - other[2]) < height
