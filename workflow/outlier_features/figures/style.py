"""What the figures share: colours, fonts, the grid of panels, and captions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from outlier_features.dim_marks import Sentence
from outlier_features.visible_text import quoted, visible, visible_start
from outlier_features.wording import count, number

# Okabe and Ito's palette, which colour-blind readers can tell apart; orange and sky blue darker, since on white they
# would have a contrast below 3. The dark theme has them as they are, see page/figure.js.
BLUE, ORANGE, SKY, VERMILLION = "#0072B2", "#BF8300", "#3B97CE", "#D55E00"
GREEN, PURPLE = "#009E73", "#CC79A7"
INK, GREY, PALE = "#222222", "#767676", "#EDEDED"

LAYER_AXIS = "layer (block, from 0)"

_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 24, 64, 54
_GAP = 24
_AXIS = {
    "showline": True, "linecolor": GREY, "mirror": True, "ticks": "outside", "tickcolor": GREY, "gridcolor": "#E4E4E4",
    "zeroline": False, "title": {"font": {"size": 12}, "standoff": 8}, "tickfont": {"size": 11},
}  # fmt: skip
STYLE = go.layout.Template(
    layout={
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 12, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hoverlabel": {"font": {"size": 12}, "align": "left"},
        "hovermode": "closest",
        "xaxis": _AXIS,
        "yaxis": {**_AXIS, "automargin": "left"},  # or a long label is cut at the figure's edge
    }
)


@dataclass(frozen=True)
class Drawing:
    """A figure and its caption; without a view where there is nothing to draw, and `text` says why.

    sites, rule, population   where the numbers come from
    text                      what is drawn, and how it is read; of it, of `title` and of `finding` the drawing makes
                              sentences
    views                     by population, each a whole figure; one that does not depend on it has one view, `all`
    data                      what is drawn, exact, its columns named as in the public tables
    min_width                 pixels below which the figure cannot be read
    finding                   what it shows of this run, in a sentence with numbers; nothing where there is none
    chapter                   of the report, see `run_figures.CHAPTERS`; nothing outside it
    """

    name: str
    title: str
    sites: str
    rule: str
    population: str
    text: str
    views: Mapping[str, go.Figure] = field(default_factory=dict)
    data: pl.DataFrame = field(default_factory=pl.DataFrame)
    min_width: int = 340
    finding: str = ""
    chapter: str = ""

    def __post_init__(self) -> None:
        for name in ("title", "finding", "text"):
            object.__setattr__(self, name, Sentence(getattr(self, name)))

    def empty(self, why: str) -> "Drawing":
        return replace(self, text=why)


def label(text: str) -> str:
    """Text as plotly shows it literally: it reads `<b>` and `&lt;` as HTML."""
    return escape(visible(text), quote=False)


def quoted_label(text: str, most: int) -> str:
    """At most so many characters of a token, in quotation marks, as plotly shows them literally."""
    return escape(quoted(visible_start(text, most)), quote=False)


def panels(heights: Sequence[int], columns: Sequence[str], *, gap: int = _GAP, **options: Any) -> go.Figure:
    """A grid of panels: rows of `heights` pixels, `gap` apart, and columns with these titles."""
    plot = sum(heights) + gap * (len(heights) - 1)
    figure = make_subplots(
        rows=len(heights),
        cols=len(columns),
        column_titles=list(columns),
        row_heights=list(heights),
        vertical_spacing=gap / plot if len(heights) > 1 else 0,
        **{"horizontal_spacing": 0.03, "shared_xaxes": "columns", "shared_yaxes": "rows", **options},
    )
    figure.update_annotations(font_size=13, yshift=2)
    figure.update_layout(
        template=STYLE,
        height=plot + _TOP + _BOTTOM,
        margin={"l": _LEFT, "r": _RIGHT, "t": _TOP, "b": _BOTTOM},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": above(figure, plot), "yanchor": "bottom"},
    )
    return figure


def above(figure: go.Figure, plot: int | None = None) -> float:
    """The height, as a fraction of the plot, just above the columns' titles."""
    if plot is None:
        plot = figure.layout.height - _TOP - _BOTTOM
    return 1 + 26 / plot


def decades(values: Sequence[float]) -> tuple[int, int]:
    """Exponents of the powers of ten that enclose positive values, at least one decade apart."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def power(exponent: int) -> str:
    """A tick of a logarithmic axis."""
    if not -4 <= exponent <= 6:
        return f"10<sup>{exponent}</sup>".replace("-", "−")
    return f"{10**exponent:,}" if exponent >= 0 else f"{10.0**exponent:g}"


def log_axis(low: int, high: int, most: int = 8) -> dict[str, Any]:
    """A logarithmic axis over decades, from one exponent to another, with about `most` ticks."""
    ticks = range(low, high + 1, 1 + (high - low) // most)
    return {
        "type": "log", "range": [low - 0.1, high + 0.1], "tickvals": [10.0**k for k in ticks],
        "ticktext": [*map(power, ticks)],
    }  # fmt: skip


def set_layer_axis(figure: go.Figure, last: int, rows: int) -> None:
    """Whole layers along the axis, up to the index `last`; the title under the last row of panels."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if last <= 10 * step)
    figure.update_xaxes(range=[-0.5, last + 0.5], tick0=0, dtick=step)
    figure.update_xaxes(title_text=LAYER_AXIS, row=rows)


def set_dim_rows(figure: go.Figure, dims: Sequence[int], names: Sequence[str] = (), row: int | None = None) -> None:
    """A row for each dim along the y axes of all panels, or of those of one row, the first above."""
    last = len(dims) - 0.5
    ticks = {
        "type": "linear", "tickvals": [*range(len(dims))], "ticktext": [*(names or map(str, dims))],
        "range": [last, -0.5],
    }  # fmt: skip
    for axis in figure.select_yaxes(row=row):
        axis.update(ticks)
        _say_dims(figure, axis, [*dims])


def set_panel_dim(figure: go.Figure, dim: int, row: int, column: int = 1) -> None:
    """Say that all of a panel is about one dim."""
    _say_dims(figure, figure.get_subplot(row, column).yaxis, dim)


def set_dim_columns(figure: go.Figure, dims: Sequence[int | None]) -> None:
    """Say which dim each column of a surface or of its map is of, None where several are put together."""
    figure.layout.meta = {**(figure.layout.meta or {}), "columns": [*dims]}


def _say_dims(figure: go.Figure, axis: Any, dims: int | list[int]) -> None:
    said = dict(figure.layout.meta or {})
    figure.layout.meta = {**said, "dims": {**said.get("dims", {}), axis.plotly_name: dims}}


def of_dims(dims: int | Sequence[int]) -> dict[str, Any]:
    """What says of a trace, as arguments to it, of which dim it is, or each of its points."""
    return {"meta": {"dims": dims if isinstance(dims, int) else [*dims]}}


def names_of_dims(dims: Iterable[int]) -> str:
    """The `name` of an annotation that names these dims."""
    return f"dims {' '.join(map(str, dims))}"


def add_legend_entry(figure: go.Figure, name: str, **style: Any) -> None:
    """An entry that does not depend on which panel has such marks."""
    figure.add_scatter(x=[None], y=[None], name=name, mode="markers", **style, row=1, col=1)


def say_nothing_here(figure: go.Figure, text: str, row: int, column: int) -> None:
    """A note in the middle of an empty panel."""
    figure.add_scatter(x=[None], y=[None], showlegend=False, row=row, col=column)  # plotly drops a panel without any
    figure.add_annotation(
        text=text, x=0.5, y=0.5, xref="x domain", yref="y domain", showarrow=False, row=row, col=column,
        font={"size": 12, "color": GREY},
    )  # fmt: skip


def add_threshold(figure: go.Figure, threshold: float, height: float, row: int) -> None:
    """A dashed line across a panel, with its value at its right end.

    height   where the line is on the axis; on a logarithmic one the value's logarithm
    """
    y = 10**height if figure.get_subplot(row, 1).yaxis.type == "log" else height
    figure.add_shape(
        type="line", x0=0, x1=1, xref="x domain", y0=y, y1=y, row=row, col=1,
        line={"color": VERMILLION, "width": 1.6, "dash": "dash"},
    )  # fmt: skip
    figure.add_annotation(
        text=number(threshold), x=1, xref="x domain", xanchor="left", xshift=2, y=height, showarrow=False,
        font={"size": 11}, row=row, col=1,
    )  # fmt: skip


def capped(total: int, shown: int, noun: str) -> str:
    """A sentence for the caption where not all could be drawn."""
    return f" Shown: the {shown} with the largest |x| of {count(total, noun)}." if total > shown else ""
