"""Heatmaps of attention patterns: a panel for a head, or for the average over heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from outlier_features.figures.style import STYLE, label
from outlier_features.visible_text import visible_start

Array = np.ndarray[Any, Any]
LEARNED = "learned sink"
LONGEST_LABEL = 14
# Colours by the square root of the probability: beside a sink, which takes most of a row, the rest stays visible.
PROBABILITY_COLOURS = [
    [(step / 20) ** 2, colour]
    for step, colour in enumerate(sample_colorscale("Viridis", [step / 20 for step in range(21)]))
]
COLOURBAR = {
    "title": {"text": "probability", "side": "right", "font": {"size": 12}}, "thickness": 12, "ypad": 0, "x": 1.01,
    "tickvals": [0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1], "tickfont": {"size": 11},
}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """A pattern (T, K), queries in rows, and what it is."""

    title: str
    pattern: Array


def head_name(head: int, kv_heads: Sequence[int] | None) -> str:
    """`head 4 (KV head 1)` where heads share KV heads: `kv_heads` has that of each."""
    return f"head {head}" if kv_heads is None else f"head {head} (KV head {kv_heads[head]})"


def average(pattern: Array) -> Panel:
    """The mean of a pattern (heads, T, K) over its heads."""
    return Panel(f"average over {len(pattern)} heads", pattern.mean(axis=0, dtype=np.float64))


def places(tokens: Sequence[str]) -> list[str]:
    """A name for each position on an axis: its index, and its token as far as there is room."""
    cut = (visible_start(text, LONGEST_LABEL) for text in tokens)
    return [label(f"{index} {text}") if text else str(index) for index, text in enumerate(cut)]


def attention_grid(
    panels: Sequence[Panel], tokens: Sequence[str], *, columns: int, size: int, every: int = 1
) -> go.Figure:
    """Panels of `size` pixels each, in rows of `columns`.

    tokens   the text or label of each position; a column more than there are of them is a learned sink
    every    how many positions from one tick to the next
    """
    rows = -(-len(panels) // columns)
    title, gap, left, ticks = 26, 18, 150, 110  # pixels
    width, height = columns * size + (columns - 1) * gap, rows * (size + title) - title
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[panel.title for panel in panels],
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=gap / width,
        vertical_spacing=title / height if rows > 1 else None,
    )
    queries = places(tokens)
    for index, panel in enumerate(panels):
        row, column = index // columns + 1, index % columns + 1
        keys = [*queries, LEARNED][: panel.pattern.shape[1]]
        figure.add_trace(_heat(panel.pattern, queries, keys, index == 0), row=row, col=column)
        if row == rows or index + columns >= len(panels):
            figure.update_xaxes(title_text="key", showticklabels=True, row=row, col=column)
        if column == 1:
            figure.update_yaxes(title_text="query", row=row, col=column)
    figure.update_annotations(font_size=13)
    ticks_of = {"type": "category", "tickmode": "linear", "tick0": 0, "dtick": every, "showgrid": False}
    figure.update_xaxes(tickangle=-90, **ticks_of)
    figure.update_yaxes(autorange="reversed", **ticks_of)
    figure.update_traces(colorbar={**COLOURBAR, "len": size, "lenmode": "pixels", "y": 1, "yanchor": "top"})
    return figure.update_layout(
        template=STYLE,
        width=width + left + 90,
        height=height + 40 + ticks,
        margin={"l": left, "r": 90, "t": 40, "b": ticks},
    )


def _heat(pattern: Array, queries: Sequence[str], keys: Sequence[str], first: bool) -> go.Heatmap:
    return go.Heatmap(
        x=list(keys),
        y=list(queries),
        z=[[round(value, 4) if value else None for value in line] for line in pattern.tolist()],
        hovertemplate="query %{y}<br>key %{x}<br>probability %{z:.4f}<extra></extra>",
        hoverongaps=False,
        colorscale=PROBABILITY_COLOURS,
        zmin=0,
        zmax=1,
        showscale=first,
    )
