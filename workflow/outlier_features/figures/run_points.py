"""Panels in which each run is a point: with its interval, its name, and hollow where others published it."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from outlier_features.figures.point_names import Box, along, place_names
from outlier_features.figures.style import GREY, add_legend_entry, label, say_nothing_here
from outlier_features.wording import number, percent

DENSE, MIXTURE = "dense", "mixture of experts"
_SYMBOLS = {DENSE: "circle", MIXTURE: "diamond"}
_STEPS = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))  # of a decade's ticks, as many as fit
WIDTH = 940  # pixels that names are placed for
_LEFT_AND_RIGHT = 108


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, of a logarithmic one the exponents, with its ticks."""

    title: str
    low: float
    high: float
    ticks: tuple[float, ...]
    words: Callable[[float], str]
    log: bool = True

    def place(self, value: float) -> float:
        """Of a value on the axis, the fraction of its length."""
        return ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)

    def within(self, value: float) -> float:
        """The value, or the end of the axis that it is beyond; 0 lies below any logarithmic axis."""
        ends = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        return min(max(value, ends[0]), ends[1])

    def layout(self) -> dict[str, Any]:
        return {
            "type": "log" if self.log else "linear", "range": [self.low, self.high], "tickvals": self.ticks,
            "ticktext": [self.words(tick) for tick in self.ticks],
        }  # fmt: skip


def log_axis_of(title: str, values: Iterable[float], words: Callable[[float], str]) -> Axis:
    """A logarithmic axis with room beside positive values, and ticks at round numbers, some six at most."""
    known = [math.log10(value) for value in values] or [0.0]
    middle, half = (min(known) + max(known)) / 2, max((max(known) - min(known)) * 0.6, 0.35)
    low, high = middle - half, middle + half
    for steps in _STEPS:
        ticks = [
            step * 10.0**power
            for power in range(math.floor(low), math.ceil(high) + 1)
            for step in steps
            if low <= math.log10(step * 10.0**power) <= high
        ]
        if len(ticks) <= 6:
            break
    every = math.ceil(len(ticks) / 6)
    return Axis(title, low, high, tuple(ticks[::every]), words)


def share_axis(title: str) -> Axis:
    return Axis(title, -0.05, 1.05, (0.0, 0.25, 0.5, 0.75, 1.0), percent, log=False)


def parameters_in_short(value: float) -> str:
    """`135M`, `7B`."""
    unit, size = next(((unit, size) for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)) if value >= size), ("", 1.0))
    return f"{number(value / size)}{unit}"


@dataclass(frozen=True)
class Point:
    """A run, or a published model, in a panel.

    low, high   the interval of y; None where there is none
    named       whether its name may stand beside it
    """

    name: str
    kind: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    published: bool = False
    named: bool = True


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour: its points, and with `line` a line through those of the runs of each kind."""

    title: str
    colour: str
    points: Sequence[Point]
    line: bool = True


def panel_size(columns: int, height: int) -> tuple[float, float]:
    """Pixels of a panel of a figure of `columns`, at the width that names are placed for."""
    return (WIDTH - _LEFT_AND_RIGHT) / columns * (0.97 if columns > 1 else 1), height


def draw_points(
    figure: go.Figure,
    row: int,
    column: int,
    series: Sequence[Series],
    across: Axis,
    up: Axis,
    size: tuple[float, float],
) -> None:
    """Draw `series` into a panel of `size` pixels; their x must lie on `across`, and their y on `up`."""
    place: dict[str, Any] = {"row": row, "col": column}
    figure.update_xaxes(**across.layout(), **place)
    figure.update_yaxes(**up.layout(), **place)
    if not any(one.points for one in series):
        say_nothing_here(figure, "no run to draw", row, column)
        return
    for one in series:
        _draw_series(figure, one, across, up, place)
    _draw_names(figure, series, across, up, size, place)


def _draw_series(figure: go.Figure, series: Series, across: Axis, up: Axis, place: dict[str, Any]) -> None:
    groups = dict.fromkeys((point.kind, point.published) for point in series.points)
    for kind, published in groups:
        points = sorted(
            (point for point in series.points if (point.kind, point.published) == (kind, published)),
            key=lambda point: point.x,
        )
        line = series.line and not published
        figure.add_scatter(
            x=[point.x for point in points],
            y=[point.y for point in points],
            error_y=None if published else _bars(points, series.colour, up),
            mode="lines+markers" if line else "markers",
            line={"color": series.colour, "width": 1, "dash": "solid" if kind == DENSE else "dot"},
            marker={"symbol": _SYMBOLS[kind] + ("-open" if published else ""), "size": 9, "color": series.colour,
                    "line": {"width": 1.6 if published else 0}},
            customdata=[(_said(point, up), across.words(point.x)) for point in points],
            text=[label(point.name) for point in points],
            hovertemplate=f"%{{text}}<br>{series.title}: %{{customdata[0]}}<br>{across.title}: %{{customdata[1]}}"
            "<extra></extra>",
            showlegend=False,
            **place,
        )  # fmt: skip


def _bars(points: Sequence[Point], colour: str, up: Axis) -> dict[str, Any]:
    """Intervals; of a number that lies outside its own, up to the number."""
    lows = [point.y if point.low is None else up.within(point.low) for point in points]
    highs = [point.y if point.high is None else up.within(point.high) for point in points]
    return {
        "type": "data", "symmetric": False, "thickness": 1.2, "width": 3, "color": colour,
        "array": [max(high - point.y, 0) for high, point in zip(highs, points, strict=True)],
        "arrayminus": [max(point.y - low, 0) for low, point in zip(lows, points, strict=True)],
    }  # fmt: skip


def _said(point: Point, up: Axis) -> str:
    interval = "" if point.low is None or point.high is None else f", {up.words(point.low)} to {up.words(point.high)}"
    return f"{up.words(point.y)}{interval}{' (published)' if point.published else ''}"


def _draw_names(
    figure: go.Figure,
    series: Sequence[Series],
    across: Axis,
    up: Axis,
    size: tuple[float, float],
    place: dict[str, Any],
) -> None:
    """The runs' names first, then the published ones; a name stands once, beside one of its points."""
    width, height = size

    def at(point: Point) -> tuple[float, float]:
        return across.place(point.x) * width, up.place(point.y) * height

    points = [point for one in series for point in one.points]
    pixels = [at(point) for point in points]
    bars: list[Box] = [
        (x - 2, up.place(up.within(point.low)) * height, x + 2, up.place(up.within(point.high)) * height)
        for (x, _), point in zip(pixels, points, strict=True)
        if point.low is not None and point.high is not None
    ]
    for one in series:
        for kind in _SYMBOLS if one.line else ():
            mine = sorted(at(point) for point in one.points if point.kind == kind and not point.published)
            bars += [box for ends in pairwise(mine) for box in along(*ends)]
    of_name: dict[tuple[bool, str], list[int]] = {}
    for index, point in enumerate(points):
        if point.named:
            of_name.setdefault((point.published, point.name), []).append(index)
    names = [(name, mine) for (_, name), mine in sorted(of_name.items(), key=lambda item: item[0][0])]
    for placed in place_names(names, pixels, bars, width, height):
        point = points[placed.point]
        where: dict[str, Any] = {
            "text": label(placed.name), "xanchor": "center", "yanchor": "middle",
            "x": math.log10(point.x) if across.log else point.x, "y": math.log10(point.y) if up.log else point.y,
            "font": {"size": 11, "color": GREY if point.published else None}, "borderpad": 0,
        }  # fmt: skip
        if placed.apart:  # the line ends where the text begins
            where |= {"showarrow": True, "arrowhead": 0, "arrowwidth": 0.7, "arrowcolor": GREY, "standoff": 4,
                      "ax": placed.right, "ay": -placed.up}  # fmt: skip
        else:
            where |= {"showarrow": False, "xshift": placed.right, "yshift": placed.up}
        figure.add_annotation(**where, **place)


def legend(figure: go.Figure, series: Sequence[tuple[str, str]], *, published: bool, kinds: bool) -> None:
    """Entries for the colours, the kinds of models and the hollow points, whichever panels have them."""
    for title, colour in series:
        add_legend_entry(figure, title, marker={"symbol": "square", "size": 10, "color": colour})
    for kind, symbol in _SYMBOLS.items() if kinds else ():
        add_legend_entry(figure, kind, marker={"symbol": symbol, "size": 9, "color": GREY})
    if published:
        add_legend_entry(figure, "published, hollow", marker={"symbol": "circle-open", "size": 9, "color": GREY,
                                                              "line": {"width": 1.6}})  # fmt: skip
