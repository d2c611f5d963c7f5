"""The figures of |x| over tokens and dims where a run's largest value is: as a surface, and as a map."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
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
    add_legend_entry,
    decades,
    log_axis,
    names_of_dims,
    of_dims,
    panels,
    quoted_label,
    say_nothing_here,
    set_dim_columns,
)
from outlier_features.populations import population_title, population_titles
from outlier_features.surface.pooling import largest_indices
from outlier_features.surface.surface_grid import SurfaceGrid
from outlier_features.visible_text import quoted
from outlier_features.wording import count, number

Array = np.ndarray[Any, Any]

LINES, POINTS = 48, 160  # of the surface
ROWS, COLUMNS = 96, 192  # of the map
PEAKS = 5
_TEXT = 14  # characters of a token
_SLANT, _DEPTH = 0.25, 0.7  # how far right and up the last token lies, in widths and in heights of the tallest
_FLAT = 1e-3  # points lower than this share of the tallest are drawn on the ground
_NO_SITE = "Nothing is drawn: this run has no site."
_CELL_HOVER = "%{customdata[0]}<br>dimension %{customdata[1]}: x = %{customdata[2]}<extra></extra>"
_NO_ROWS = "no such tokens in this run"


def surface_figures(surface: pl.DataFrame, populations: Sequence[str]) -> list[Drawing]:
    """The surface and the map of the table `surface`."""
    drawings = [
        _drawing(surface, populations, "surface", "Surface of the largest value",
                 "A line for each token, the first in front, over the dimensions, in the manner of Sun et al. 2024, "
                 "figure 1. Heights are |x| from a line's own ground; both axes are those of the first line. The "
                 "largest values bear token, position, dimension and signed value. Without first tokens the scale is "
                 "another."),
        _drawing(surface, populations, "surface-map", "Map of the largest value",
                 "|x| over tokens (downward) and dimensions (to the right), with the largest of each beside it. "
                 "Labelled are the tokens with the largest |x|, and of the dimensions those that a followed rule "
                 "selects and the largest. The darkest colour is also that of the 1 % smallest values."),
    ]  # fmt: skip
    if surface.is_empty():
        return [drawing.empty(_NO_SITE) for drawing in drawings]
    grids = {name: SurfaceGrid.of(surface, name) for name in populations}
    lines = {name: grid.coarser(LINES, POINTS) for name, grid in grids.items()}
    cells = {name: grid.coarser(ROWS, COLUMNS) for name, grid in grids.items()}
    colours = _colour_range([grid.size for grid in cells.values()])
    span = _span([grid.size for grid in cells.values()])
    return [
        replace(
            drawings[0],
            views={name: _surface(grid, name) for name, grid in lines.items()},
            data=_data(lines, lambda grid: _drawn(grid.size)),
            finding=_largest(grids[populations[0]], surface),
        ),
        replace(
            drawings[1],
            views={name: _map(grid, name, colours, span) for name, grid in cells.items()},
            data=_data(cells, _marginal),
            finding=_how_many(grids[populations[0]], surface),
        ),
    ]


def _drawing(surface: pl.DataFrame, populations: Sequence[str], name: str, title: str, text: str) -> Drawing:
    where = _place(surface)
    pooled = surface.filter((pl.col("token_first") < pl.col("token_last")) | (pl.col("dim_first") < pl.col("dim_last")))
    return Drawing(
        name,
        title,
        f"{where[0]['site']}, layer {where[0]['layer']}, sequence {where[0]['sequence']}" if where else "none",
        f"none; layer and sequence are those of the largest |x| on {where[0]['site']}" if where else "none",
        population_titles(populations),
        text + " Where there are more tokens or dimensions than can be drawn, neighbours are put together, except the "
        "selected and the largest ones, and their largest |x| is drawn."
        + (" They are put together in surface.parquet too." if len(pooled) else ""),
    )


def _place(surface: pl.DataFrame) -> list[dict[str, Any]]:
    return surface.select("site", "layer", "sequence").head(1).to_dicts()


def _largest(grid: SurfaceGrid, surface: pl.DataFrame) -> str:
    """Where the largest value is, and how far the other tokens are below it."""
    [place] = _place(surface)
    row, column = divmod(int(grid.size.argmax()), grid.size.shape[1])
    token, dim = int(grid.token[row, column]), int(grid.dim[row, column])
    text = grid.texts.get(token)
    named = "" if text is None else f" ({quoted(text)})"
    rest = np.delete(grid.by_token, row)
    value = number(float(grid.value[row, column]))
    return (
        f"On {place['site']} of layer {place['layer']}, x is {value} in dimension {dim_mark(dim)} at position {token} "
        f"of sequence {place['sequence']}{named}"
        + (f"; at the other positions |x| is at most {number(float(rest.max()))}." if len(rest) else ".")
    )


def _how_many(grid: SurfaceGrid, surface: pl.DataFrame) -> str:
    """How many dims and tokens come near the largest value."""
    [place] = _place(surface)
    near = 0.1 * grid.size.max()
    dims, tokens = (
        f"{'at least ' if (ends[largest >= near, 0] < ends[largest >= near, 1]).any() else ''}"
        f"{number(int((largest >= near).sum()))} of {count(int(ends.max()) + 1, noun)}"
        for largest, ends, noun in ((grid.by_dim, grid.dims, "dimension"), (grid.by_token, grid.tokens, "position"))
    )
    return (
        f"A tenth of the largest |x|, {number(float(near))}, is reached in {dims} and at {tokens} "
        f"({place['site']}, layer {place['layer']}, sequence {place['sequence']})."
    )


def _data(grids: Mapping[str, SurfaceGrid], which: Callable[[SurfaceGrid], Array]) -> pl.DataFrame:
    """The cells at `which(grid)`, bool (R, C), of each population."""
    frames = []
    for population, grid in grids.items():
        if grid.value.size:
            row, column = np.nonzero(which(grid))
            frames.append(
                pl.DataFrame(
                    {
                        "population": population,
                        "token_first": grid.tokens[row, 0],
                        "token_last": grid.tokens[row, 1],
                        "token": grid.token[row, column],
                        "dim": grid.dim[row, column],
                        "value": grid.value[row, column].astype(np.float32),
                    }
                )
            )
    return pl.concat(frames) if frames else pl.DataFrame()


def _marginal(grid: SurfaceGrid) -> Array:
    """The largest cell of each row and of each column."""
    chosen = np.zeros(grid.value.shape, bool)
    chosen[np.arange(len(grid.tokens)), grid.size.argmax(axis=1)] = True
    chosen[grid.size.argmax(axis=0), np.arange(len(grid.dims))] = True
    return chosen


def token_label(texts: Mapping[int, str], position: int) -> str:
    """A token as a label: its text, cut and made visible, and its position."""
    text = texts.get(position)
    if text is None:
        return f"position {position}"
    return f"{quoted_label(text, _TEXT)} {position}"


# The surface


def _drawn(size: Array) -> Array:
    """Which points of the lines are drawn: all but those on the ground whose neighbours are too."""
    high = np.pad(size > _FLAT * size.max(), ((0, 0), (1, 1)))
    drawn = high[:, 1:-1] | high[:, :-2] | high[:, 2:]
    drawn[:, [0, -1]] = True
    return np.asarray(drawn)


def _surface(grid: SurfaceGrid, population: str) -> go.Figure:
    figure = panels([400], [population_title(population)])
    figure.update_xaxes(title_text="dimension (of the first line)", showgrid=False, mirror=False, showline=False)
    figure.update_yaxes(title_text="|x| (activation)", showgrid=False, mirror=False, showline=False)
    if not grid.value.size:
        say_nothing_here(figure, _NO_ROWS, 1, 1)
        return figure
    tallest = float(grid.size.max()) or 1.0
    view = _Oblique(
        int(grid.dims[0, 0]), int(grid.dims[-1, 1]), int(grid.tokens[0, 0]), int(grid.tokens[-1, 1]), tallest
    )
    peaks = list(_peaks(grid, view))
    dims = _apart([dim for _, _, dim in peaks] + [view.dim_first, view.dim_last], view.width * 0.09)
    _add_ground(figure, view, dims)
    _add_lines(figure, grid, view)
    _add_peaks(figure, grid, view, peaks)
    figure.update_xaxes(
        range=[view.dim_first - 0.02 * view.width, view.dim_last + (_SLANT + 0.14) * view.width],
        tickvals=dims, ticktext=[*map(str, dims)],
    )  # fmt: skip
    step = _nice_step(tallest)
    heights = [step * i for i in range(int(tallest / step) + 1)]
    top = view.at(0, grid.tokens.mean(axis=1), grid.by_token)[1].max()
    figure.update_yaxes(
        range=[-0.02 * tallest, top + 0.2 * tallest],
        tickvals=heights, ticktext=[number(height) for height in heights],
    )  # fmt: skip
    set_dim_columns(figure, _alone(grid))
    return figure


def _alone(grid: SurfaceGrid) -> list[int | None]:
    """Of each column its dim, if no neighbours are put together in it."""
    return [first if first == last else None for first, last in grid.dims.tolist()]


class _Oblique:
    """Where a value at (dim, token) is drawn."""

    def __init__(self, dim_first: int, dim_last: int, token_first: int, token_last: int, tallest: float):
        self.dim_first, self.dim_last = dim_first, dim_last
        self.token_first, self.token_last = token_first, token_last
        self.tallest, self.width = tallest, max(dim_last - dim_first, 1)

    def at(self, dim: Any, token: Any, height: Any) -> tuple[Any, Any]:
        depth = (token - self.token_first) / max(self.token_last - self.token_first, 1)
        return dim + depth * _SLANT * self.width, height + depth * _DEPTH * self.tallest


def _add_ground(figure: go.Figure, view: _Oblique, dims: Sequence[int]) -> None:
    """The lines of labelled dims into the depth, and some positions at the right edge."""
    for dim in dims:
        (x0, y0), (x1, y1) = view.at(dim, view.token_first, 0), view.at(dim, view.token_last, 0)
        figure.add_scatter(
            x=[x0, x1], y=[y0, y1], mode="lines", line={"color": "#BBBBBB", "width": 1}, hoverinfo="skip",
            showlegend=False,
        )  # fmt: skip
    count = min(4, view.token_last - view.token_first)
    for i in range(count + 1):
        token = view.token_first + round(i * (view.token_last - view.token_first) / max(count, 1))
        x, y = view.at(view.dim_last, token, 0)
        figure.add_annotation(
            x=x, y=y, text=str(token) if i else f"position {token}", showarrow=False, xanchor="left", yanchor="middle",
            xshift=3, font={"size": 11},
        )  # fmt: skip


def _add_lines(figure: go.Figure, grid: SurfaceGrid, view: _Oblique) -> None:
    """The last token first, so that each line hides what is behind it."""
    tokens, drawn = grid.tokens.mean(axis=1), _drawn(grid.size)
    for row in reversed(range(len(tokens))):
        keep = drawn[row]
        x, y = view.at(grid.dim[row, keep], tokens[row], grid.size[row, keep])
        (left, ground), (right, _) = view.at(view.dim_first, tokens[row], 0), view.at(view.dim_last, tokens[row], 0)
        shift, heights = float(left) - view.dim_first, [float(f"{one:.5g}") for one in grid.size[row, keep]]
        figure.add_scatter(
            x=[round(float(value), 2) for value in (left, *x, right, left)],
            y=[float(f"{value:.5g}") for value in (ground, *y, ground, ground)],
            mode="lines", fill="toself", fillcolor="white", hoverinfo="skip", showlegend=False,
            line={"color": VERMILLION, "width": 1.4} if grid.excluded[row] else {"color": INK, "width": 0.5},
            meta={"shift": shift, "ground": float(ground), "heights": heights},
        )  # fmt: skip
    for name, line, symbol in (
        ("first position or special token", {"color": VERMILLION, "width": 1.4}, "diamond"),
        ("other token", {"color": INK, "width": 0.5}, "circle"),
    ):
        figure.add_scatter(
            x=[None], y=[None], mode="lines+markers", name=name, line=line,
            marker={"symbol": symbol, "size": 7, "color": VERMILLION if symbol == "diamond" else BLUE},
        )  # fmt: skip


def _peaks(grid: SurfaceGrid, view: _Oblique) -> Iterator[tuple[int, int, int]]:
    """Row, column and dim of the largest values whose labels do not cover each other."""
    taken: list[tuple[float, float]] = []
    for cell in np.argsort(-grid.size, axis=None, kind="stable")[:400]:
        row, column = divmod(int(cell), grid.size.shape[1])
        x, y = view.at(grid.dim[row, column], grid.token[row, column], grid.size[row, column])
        at = (float(x) / view.width, float(y) / view.tallest)
        if grid.size[row, column] >= 0.02 * view.tallest and all(
            abs(at[0] - x) > 0.55 or abs(at[1] - y) > 0.17 for x, y in taken
        ):
            taken.append(at)
            yield row, column, int(grid.dim[row, column])
        if len(taken) == PEAKS:
            return


def _add_peaks(figure: go.Figure, grid: SurfaceGrid, view: _Oblique, peaks: Sequence[tuple[int, int, int]]) -> None:
    """A mark on each peak, and its label beside it."""
    for row, column, dim in peaks:
        token, value = int(grid.token[row, column]), float(grid.value[row, column])
        x, y = view.at(dim, grid.tokens[row].mean(), abs(value))
        share = (x - view.dim_first) / view.width
        figure.add_annotation(
            x=x, y=y, text=f"{token_label(grid.texts, token)}<br>dim {dim}: {number(value)}", showarrow=False,
            xanchor="left" if share < 0.35 else "right" if share > 0.85 else "center", yanchor="bottom", yshift=2,
            font={"size": 11}, align="left" if share < 0.35 else "right" if share > 0.85 else "center",
            bgcolor="white", name=names_of_dims([dim]),
        )  # fmt: skip
        figure.add_scatter(
            x=[x], y=[y], mode="markers", showlegend=False, hoverinfo="skip", **of_dims(dim),
            marker={"size": 7, "symbol": "diamond" if grid.excluded[row] else "circle",
                    "color": VERMILLION if grid.excluded[row] else BLUE},
        )  # fmt: skip


def _apart(values: Sequence[int], distance: float) -> list[int]:
    """Of values in the order of their importance, those that have room beside the ones before them."""
    kept: list[int] = []
    for value in values:
        if all(abs(value - other) >= distance for other in kept):
            kept.append(value)
    return sorted(kept)


def _nice_step(largest: float) -> float:
    """1, 2 or 5 times a power of ten, so that it fits three to seven times."""
    power_of_ten = 10.0 ** np.floor(np.log10(largest))
    return float(next(step * power_of_ten for step in (0.2, 0.5, 1, 2) if largest / (step * power_of_ten) <= 7))


# The map


def _colour_range(sizes: Sequence[Array]) -> tuple[float, float]:
    """Logarithms of the values that the colours reach over: from the smallest 1 % to the largest."""
    positive = np.concatenate([size[size > 0] for size in sizes] or [np.ones(1)])
    if not len(positive):
        return 0.0, 1.0
    low, high = float(np.log10(np.quantile(positive, 0.01))), float(np.log10(positive.max()))
    return low, max(high, low + 0.1)


def _span(sizes: Sequence[Array]) -> tuple[int, int]:
    """Powers of ten around the largest values of rows and columns."""
    largest = [size.max(axis=axis) for size in sizes if size.size for axis in (0, 1)]
    positive = [float(value) for values in largest for value in values if value > 0]
    return decades(positive or [1.0])


def _map(grid: SurfaceGrid, population: str, colours: tuple[float, float], span: tuple[int, int]) -> go.Figure:
    figure = panels(
        [90, 440], [population_title(population), ""], gap=14, column_widths=[0.8, 0.2], horizontal_spacing=0.06
    )
    figure.update_layout(margin={"l": 128, "b": 136}, height=figure.layout.height + 82)
    if not grid.value.size:
        say_nothing_here(figure, _NO_ROWS, 2, 1)
        return figure
    rows, columns = len(grid.tokens), len(grid.dims)
    figure.add_trace(_heat(grid, colours), row=2, col=1)
    _add_marginals(figure, grid)
    low, high = span
    log = log_axis(low, high, most=4) | {"range": [low, high + 0.1]}
    figure.update_yaxes(**log, title_text="max |x|", title_standoff=2, row=1, col=1)
    figure.update_xaxes(**log, title_text="max |x|", tickangle=-90, row=2, col=2)
    alone = grid.tokens[:, 0] == grid.tokens[:, 1]
    largest = largest_indices(np.where(alone, grid.by_token, -np.inf), 30)
    tokens = _apart(largest.tolist(), max(1, 0.035 * rows))
    chosen = largest_indices(np.where(grid.selected, grid.by_dim, -np.inf), columns)
    dims = _apart([*chosen.tolist(), *largest_indices(grid.by_dim, 12).tolist()], max(1, 0.07 * columns))
    figure.update_yaxes(
        range=[rows - 0.5, -0.5], tickvals=tokens, showgrid=False,
        ticktext=[token_label(grid.texts, int(grid.tokens[i, 0])) for i in tokens], row=2,
    )  # fmt: skip
    figure.update_xaxes(
        range=[-0.5, columns - 0.5], tickvals=dims, ticktext=[_range(grid.dims[i]) for i in dims], tickangle=-90,
        showgrid=False, col=1,
    )  # fmt: skip
    figure.update_xaxes(title_text="dimension", title_standoff=4, row=2, col=1)
    figure.update_yaxes(title_text="token, position", title_standoff=2, row=2, col=1)
    set_dim_columns(figure, _alone(grid))
    figure.update_xaxes(visible=False, row=1, col=2)
    figure.update_yaxes(visible=False, row=1, col=2)
    return figure


def _range(ends: Array) -> str:
    first, last = ends
    return str(first) if first == last else f"{first} to {last}"


def _heat(grid: SurfaceGrid, colours: tuple[float, float]) -> go.Heatmap:
    low, high = colours
    powers = range(int(np.floor(low)), int(np.floor(high)) + 1)
    ticks = [step * 10.0**k for k in powers for step in ((1,) if high - low > 2 else (1, 2, 5))]
    ticks = [tick for tick in ticks if low <= np.log10(tick) <= high] or [10**low, 10**high]
    return go.Heatmap(
        z=[[round(float(np.log10(value)), 2) if value > 0 else None for value in line] for line in grid.size],
        x=list(range(len(grid.dims))),
        y=list(range(len(grid.tokens))),
        colorscale="Viridis",
        zmin=low,
        zmax=high,
        customdata=_cells(grid),
        hovertemplate=_CELL_HOVER,
        hoverongaps=False,
        colorbar={
            "orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yref": "container", "yanchor": "bottom", "ypad": 4,
            "len": 0.78, "thickness": 10, "xpad": 0, "tickfont": {"size": 11},
            "tickvals": [float(np.log10(tick)) for tick in ticks], "ticktext": [*map(number, ticks)],
            "title": {"text": "|x| (activation)", "side": "bottom", "font": {"size": 12}},
        },
    )  # fmt: skip


def _cells(grid: SurfaceGrid) -> list[list[tuple[str, int, str]]]:
    """Of each cell its largest |x|: the token, the dim, and x as text."""
    rows, columns = grid.value.shape
    return [[_cell(grid, row, column) for column in range(columns)] for row in range(rows)]


def _cell(grid: SurfaceGrid, row: int, column: int) -> tuple[str, int, str]:
    token, dim = int(grid.token[row, column]), int(grid.dim[row, column])
    return token_label(grid.texts, token), dim, number(float(grid.value[row, column]))


def _add_marginals(figure: go.Figure, grid: SurfaceGrid) -> None:
    rows, columns = np.arange(len(grid.tokens)), np.arange(len(grid.dims))
    tallest, widest = grid.size.argmax(axis=0), grid.size.argmax(axis=1)
    figure.add_scatter(
        x=columns.tolist(), y=grid.by_dim.tolist(), mode="lines", line={"color": GREY, "width": 1}, showlegend=False,
        customdata=[_cell(grid, int(row), column) for column, row in enumerate(tallest)], hovertemplate=_CELL_HOVER,
        row=1, col=1,
    )  # fmt: skip
    chosen = np.flatnonzero(grid.selected)
    star = {"symbol": "triangle-down", "size": 9, "color": ORANGE, "line": {"color": INK, "width": 1}}
    figure.add_scatter(
        x=chosen.tolist(), y=grid.by_dim[chosen].tolist(), mode="markers", marker=star, showlegend=False,
        hoverinfo="skip", row=1, col=1,
    )  # fmt: skip
    figure.add_scatter(
        x=grid.by_token.tolist(), y=rows.tolist(), mode="lines", line={"color": GREY, "width": 1}, showlegend=False,
        customdata=[_cell(grid, row, int(column)) for row, column in enumerate(widest)], hovertemplate=_CELL_HOVER,
        row=2, col=2,
    )  # fmt: skip
    apart = np.flatnonzero(grid.excluded)
    diamond = {"symbol": "diamond", "size": 8, "color": VERMILLION, "line": {"color": INK, "width": 1}}
    figure.add_scatter(
        x=grid.by_token[apart].tolist(), y=apart.tolist(), mode="markers", marker=diamond, showlegend=False,
        hoverinfo="skip", row=2, col=2,
    )  # fmt: skip
    add_legend_entry(figure, "selected dimension", marker=star)
    add_legend_entry(figure, "first position or special token", marker=diamond)
