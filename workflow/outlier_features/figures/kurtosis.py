"""The figure of the three kurtoses in every layer."""

import math
from collections.abc import Sequence
from dataclasses import replace

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    Drawing,
    label,
    panels,
    say_nothing_here,
    set_layer_axis,
)
from outlier_features.populations import over_population, population_title, population_titles
from outlier_features.wording import count, listing, number

# Column, title of its axis, and its value for a normal distribution, or for dims of equal RMS.
_KURTOSES = (
    ("kurtosis_flat_excess", "of all values, excess", 0.0, "0 if normal"),
    ("kurtosis_token", "within positions", 3.0, "3 if normal"),
    ("kurtosis_channel_rms", "between dimensions", 1.0, "1 if all RMS are equal"),
)
_COLUMNS = [name for name, *_ in _KURTOSES]
_COLOURS = (BLUE, VERMILLION, ORANGE, SKY, INK)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "cross")


def kurtosis(layers: pl.DataFrame, blocks: int, populations: Sequence[str]) -> Drawing:
    """Three measures of how heavy the tails of a layer are, a panel for each and a line for each site."""
    sites = layers["site"].unique(maintain_order=True).to_list()
    missing = layers.filter(pl.col("positions") > 0).select(_COLUMNS).null_count().row(0)
    drawing = Drawing(
        "kurtosis",
        "Kurtosis by layer",
        listing(sites) if sites else "none",
        "none, every value counts",
        population_titles(populations),
        "Three measures go by this name. kurtosis_flat_excess: Fisher's, m4 / m2² - 3 of all values of the site and "
        "layer. kurtosis_token: Pearson's, m4 / m2² over the dimensions of one position, averaged over positions. "
        "kurtosis_channel_rms: mean(s⁴) / mean(s²)², s the root mean square of a dimension over the positions; the "
        "number of dimensions if one has all. The axes are logarithmic, that of the first through 0 (inverse "
        "hyperbolic sine). The dashed lines are the values named."
        + (f" {count(sum(missing), 'value')} of a constant tensor are not defined." if any(missing) else ""),
    )
    if not sites:
        return drawing.empty("Nothing is drawn: this run has no site.")
    views = {population: _figure(layers, sites, blocks, population) for population in populations}
    data = layers.select("population", "site", "layer", *_COLUMNS)
    return replace(drawing, views=views, data=data, finding=_finding(data, populations))


def _finding(data: pl.DataFrame, populations: Sequence[str]) -> str:
    """The layer with the heaviest tail of all values, and how heavy the site's are without first tokens."""
    name, title, _, meaning = _KURTOSES[0]
    known = data.drop_nulls(name).sort(name, descending=True)
    found = known.filter(population=populations[0]).head(1).to_dicts()
    if not found:
        return ""
    [most] = found
    text = f"Kurtosis {title} ({meaning}), is largest on {most['site']} in layer {most['layer']}: {number(most[name])}"
    for population in populations[1:]:
        here = known.filter(population=population, site=most["site"])
        if not here.is_empty():
            value, layer = here.select(name, "layer").row(0)
            text += f"; {over_population(population)} it is at most {number(value)} there (layer {layer})"
    return f"{text}."


def _figure(layers: pl.DataFrame, sites: Sequence[str], blocks: int, population: str) -> go.Figure:
    figure = panels([180] * len(_KURTOSES), [population_title(population)])
    for row, (name, title, plain, meaning) in enumerate(_KURTOSES, start=1):
        here = layers.filter(population=population).drop_nulls(name)
        if here.is_empty():
            say_nothing_here(figure, "no such tokens in this run", row, 1)
        for index, site in enumerate(sites):
            _add_line(figure, here.filter(site=site), site, name, index, blocks, row)
        set_tail_scale(figure, [plain, *layers[name].drop_nulls().to_list()], row)
        figure.add_hline(
            y=tail_place(plain), line={"color": GREY, "dash": "dash", "width": 1}, row=row, col=1,
            annotation={"text": meaning, "xanchor": "right", "yanchor": "top", "font": {"size": 11, "color": GREY}},
        )  # fmt: skip
        figure.update_yaxes(title_text=f"kurtosis<br>{title}", row=row, col=1)
    figure.update_layout(margin_l=98)
    set_layer_axis(figure, blocks - 1, len(_KURTOSES))
    return figure


def tail_place(value: float) -> float:
    """Where a value stands: nearly linear below 1, logarithmic above, and the same for negative values."""
    return math.asinh(value)


def _add_line(figure: go.Figure, here: pl.DataFrame, site: str, name: str, index: int, blocks: int, row: int) -> None:
    """Over all layers, broken where the site is absent from some."""
    values = dict(zip(here["layer"].to_list(), here[name].to_list(), strict=True))
    over = [values.get(layer) for layer in range(blocks)]
    colour = _COLOURS[index % len(_COLOURS)]
    figure.add_scatter(
        x=list(range(blocks)),
        y=[None if value is None else tail_place(value) for value in over],
        customdata=[number(value) for value in over],
        hovertemplate=f"{label(site)}, layer %{{x}}: %{{customdata}}<extra></extra>",
        name=label(site),
        legendgroup=site,
        showlegend=row == 1,
        mode="lines+markers",
        line={"color": colour, "dash": _DASHES[index % len(_DASHES)], "width": 1.8},
        marker={"symbol": _SYMBOLS[index % len(_SYMBOLS)], "size": 6},
        row=row,
        col=1,
    )


def set_tail_scale(figure: go.Figure, values: Sequence[float], row: int) -> None:
    low, high = min(values), max(values)
    steps = [float(f"{step}e{k}") for k in range(9) for step in (1, 3)]
    inside = [value for value in [-2.0, 0.0, *steps] if low <= value <= high * 1.2]
    if len(inside) > 7:
        inside = [value for value in inside if not f"{value:e}".startswith("3")]
    span = tail_place(high) - tail_place(low)
    figure.update_yaxes(
        range=[tail_place(low) - 0.13 * span - 0.1, tail_place(high) + 0.06 * span + 0.1],
        tickvals=[*map(tail_place, inside)],
        ticktext=[number(value) for value in inside],
        row=row,
    )
