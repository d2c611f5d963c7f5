"""The figure of the selected dims over the layers."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import plotly.graph_objects as go
import polars as pl

from outlier_features.dim_marks import dim_mark
from outlier_features.figures.style import (
    PALE,
    Drawing,
    add_legend_entry,
    capped,
    label,
    panels,
    set_dim_rows,
    set_layer_axis,
)
from outlier_features.largest import largest_of_each
from outlier_features.populations import over_population, population_title, population_titles
from outlier_features.wording import count, listing, number

MAX_ROWS = 30
_DECADES = 4  # that the colours reach over, at most
_STEPS = (("step_up", "steps up", "triangle-up"), ("step_down", "steps down", "triangle-down"))
_TRIANGLE = {"size": 11, "color": "white", "line": {"color": "black", "width": 1.5}}


def dimension_map(
    emergence: pl.DataFrame, dims: pl.DataFrame, sites: Mapping[str, Sequence[str]], populations: Sequence[str]
) -> Drawing:
    """Max |x| of the selected dims in every layer, a row of panels for each site; where each steps up and down.

    sites   of this run that each followed rule was applied to
    """
    chosen = chosen_dims(dims, sites)
    shown, drawn = chosen[:MAX_ROWS], emergence["site"].unique(maintain_order=True).to_list()
    drawing = Drawing(
        "dimension-map",
        "Selected dimensions over the layers",
        listing(drawn) if drawn else "none",
        f"{choosing(sites)} the dimensions",
        population_titles(populations),
        "Largest |x| over all sequences of each dimension that a rule selects, over all tokens or without the first; "
        "triangles mark its step-up and step-down layers on resid_post where a rule selects it. A grey cell has "
        "no value: the layer lacks the site, there are no such tokens, or the value is 0. Values below "
        f"1/{10**_DECADES:,} of a panel's largest have the darkest colour."
        + capped(len(chosen), len(shown), "selected dimension"),
    )
    if not shown:
        return drawing.empty(none_selected(sites))
    of_rules = dims.filter(pl.col("rule").is_in([*sites]))
    views = {population: _figure(emergence, of_rules, shown, drawn, population) for population in populations}
    cells = emergence.filter(pl.col("dim").is_in(shown)).select("population", "site", "dim", "layer", "max_abs")
    return replace(drawing, views=views, data=cells, finding=_finding(emergence, of_rules, sites, populations))


def _finding(emergence: pl.DataFrame, dims: pl.DataFrame, rules: Collection[str], populations: Sequence[str]) -> str:
    """The largest selected dim, of the first population that has one, and in which layer most step up."""
    for population in populations:
        selected = dims.filter("selected", population=population)
        cells = emergence.filter(pl.col("dim").is_in(selected["dim"].implode()), population=population)
        if cells.is_empty():
            continue
        largest, dims_in_all = cells.sort("max_abs").row(-1, named=True), selected["dim"].n_unique()
        at = f"on {largest['site']} in layer {largest['layer']}"
        select = f"{' or '.join(rules)} {'select' if len(rules) > 1 else 'selects'} {over_population(population)}"
        steps = selected.drop_nulls("step_up").unique("dim").group_by("step_up").len().sort("len", "step_up")
        layer, those = (None, 0) if steps.is_empty() else steps.row(-1)
        if dims_in_all == 1:
            named, reached = dim_mark(largest["dim"]), number(largest["max_abs"])
            text = f"Dimension {named}, the one that {select}, reaches |x| {reached} {at}"
            return text + ("." if layer is None else f" and steps up in layer {layer}.")
        text = (
            f"Of {count(dims_in_all, 'dimension')} that {select}, {dim_mark(largest['dim'])} has the largest |x|: "
            f"{number(largest['max_abs'])} {at}"
        )
        return text + ("." if layer is None else f"; {number(those)} of them step up in layer {layer}.")
    return ""


def choosing(rules: Collection[str]) -> str:
    """`dettmers or massive chooses`: for the place of the rule in a caption."""
    return f"{' or '.join(rules)} chooses" if rules else "no rule chooses"


def none_selected(rules: Collection[str]) -> str:
    return f"Nothing is drawn: no dimension is selected by rule {' or rule '.join(rules)} in any population."


def chosen_dims(dims: pl.DataFrame, rules: Collection[str]) -> list[int]:
    """Dims that one of `rules` selects in any population, the largest first."""
    chosen = dims.filter(pl.col("selected"), pl.col("rule").is_in([*rules]))
    return largest_of_each(chosen, "max_abs", "dim")["dim"].to_list()


def _figure(
    emergence: pl.DataFrame,
    dims: pl.DataFrame,
    shown: Sequence[int],
    sites: Sequence[str],
    population: str,
) -> go.Figure:
    figure = panels([max(110, 15 * len(shown))] * len(sites), [population_title(population)])
    figure.update_layout(plot_bgcolor=PALE, margin_r=100)
    layers = sorted(emergence["layer"].unique().to_list())
    for row, site in enumerate(sites, start=1):
        values = emergence.filter(pl.col("site") == site, pl.col("dim").is_in(shown))
        span = _span([value for value in values["max_abs"].to_list() if value > 0])
        here = values.filter(population=population).select("dim", "layer", "max_abs").rows()
        cells = {(dim, layer): value for dim, layer, value in here}
        grid = [[cells.get((dim, layer)) for layer in layers] for dim in shown]
        figure.add_trace(_heat(grid, layers, shown, span, _height(figure, row)), row=row, col=1)
        if site == "resid_post":
            add_steps(figure, dims.filter(population=population), shown, row)
        figure.update_yaxes(title_text=f"{label(site)}<br>dimension", title_standoff=4, row=row, col=1)
    set_dim_rows(figure, shown)
    figure.update_yaxes(showgrid=False)
    figure.update_xaxes(showgrid=False)
    set_layer_axis(figure, layers[-1], len(sites))
    if "resid_post" in sites:
        add_step_legend(figure)
    figure.add_annotation(
        text="max |x|",
        x=1,
        y=1,
        xref="paper",
        yref="paper",
        xanchor="left",
        xshift=14,
        yshift=6,
        yanchor="bottom",
        showarrow=False,
    )
    return figure


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Logarithms that the colours reach over: a few values that are next to nothing (an encoder's last norm can have
    gains of 1e-31) would take the colours from all others."""
    low, high = math.log10(min(values, default=1)), math.log10(max(values, default=1))
    low = max(low, high - _DECADES)
    return low, max(high, low + 0.1)


def _heat(
    grid: list[list[float | None]],
    layers: Sequence[int],
    shown: Sequence[int],
    span: tuple[float, float],
    height: tuple[float, float],
) -> go.Heatmap:
    """Colours of one site, with their bar beside its panel, which reaches over `height`."""
    ticks = _ticks(*span)
    return go.Heatmap(
        x=list(layers),
        y=list(range(len(shown))),
        z=[[math.log10(value) if value else None for value in line] for line in grid],
        customdata=[[[dim, number(value)] for value in line] for dim, line in zip(shown, grid, strict=True)],
        hovertemplate="dimension %{customdata[0]}, layer %{x}<br>max |x| %{customdata[1]}<extra></extra>",
        hoverongaps=False,
        colorscale="Viridis",
        zmin=span[0],
        zmax=span[1],
        xgap=1,
        ygap=1,
        colorbar={
            "tickvals": [math.log10(value) for value in ticks], "ticktext": [number(value) for value in ticks],
            "tickfont": {"size": 11}, "thickness": 12, "x": 1.01, "ypad": 0, "y": sum(height) / 2,
            "len": height[1] - height[0], "lenmode": "fraction", "yanchor": "middle",
        },
    )  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two logarithms, with their doubles and fives where there are too few."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [float(f"{step}e{k}") for k in exponents for step in steps]
        inside = [value for value in ticks if low <= math.log10(value) <= high]
        if len(inside) >= 3:
            return inside
    return [10**low, 10**high]


def _height(figure: go.Figure, row: int) -> tuple[float, float]:
    """Where a panel begins and ends, as fractions of the plot."""
    low, high = figure.get_subplot(row, 1).yaxis.domain
    return low, high


def add_steps(figure: go.Figure, dims: pl.DataFrame, shown: Sequence[int], row: int) -> None:
    """Triangles where the selected dims of one population step up and down, at their index in `shown`."""
    known = dims.filter(pl.col("selected"), pl.col("dim").is_in(shown))
    for name, title, symbol in _STEPS:
        steps = known.drop_nulls(name).unique("dim").sort("dim")
        figure.add_scatter(
            x=steps[name].to_list(),
            y=[shown.index(dim) for dim in steps["dim"].to_list()],
            customdata=steps["dim"].to_list(),
            name=title,
            showlegend=False,
            mode="markers",
            marker={"symbol": symbol, **_TRIANGLE},
            hovertemplate=f"dimension %{{customdata}} {title} in layer %{{x}}<extra></extra>",
            row=row,
            col=1,
        )


def add_step_legend(figure: go.Figure) -> None:
    for _, title, symbol in _STEPS:
        add_legend_entry(figure, f"{title} (on resid_post)", marker={"symbol": symbol, **_TRIANGLE})
