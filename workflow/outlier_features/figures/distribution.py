"""The figure of how the |x| of every layer are distributed, from the bulk to the outliers."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.style import (
    Drawing,
    add_threshold,
    label,
    panels,
    power,
    say_nothing_here,
    set_layer_axis,
)
from outlier_features.populations import population_title, population_titles
from outlier_features.summary.run_rules import applied_sites, run_rules
from outlier_features.wording import count, listing, number, percent

UNDRAWN = 0.01  # of the smallest values of every layer: the density of values near 0 tells nothing
_ZEROS = 0.3  # height of the band of zeros, in factors of ten
_BAR = 24  # pixels of the scale of colours, above

Thresholds = Mapping[str, Mapping[float, Sequence[str]]]


def site_thresholds(summary: Mapping[str, Any]) -> dict[str, dict[float, list[str]]]:
    """By site the thresholds of this run's rules, and the rules that have each."""
    found: dict[str, dict[float, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, rule in run_rules(summary).items():
        for site in applied_sites(summary, name) if rule.scale is None else ():
            found[site][rule.threshold].append(name)
    if summary["location"]:
        for site in summary["location"]["populations"]["all"]:
            found[site][summary["location"]["threshold"]].append(summary["location"]["rule"])
    return {site: dict(thresholds) for site, thresholds in found.items()}


def distribution(bins: pl.DataFrame, blocks: int, thresholds: Thresholds, populations: Sequence[str]) -> Drawing:
    """The share of a layer's values in each bin of |x|, a panel for each site.

    thresholds   by site, with the rules that have them
    """
    sites = bins["site"].unique(maintain_order=True).to_list()
    lines = [
        f"{number(threshold)} ({listing(rules)}) on {site}"
        for site in sites
        for threshold, rules in thresholds.get(site, {}).items()
    ]
    drawing = Drawing(
        "distribution",
        "Distribution of |x| by layer",
        listing(sites) if sites else "none",
        "none, every value counts" + (f"; the lines are thresholds, {', '.join(lines)}" if lines else ""),
        population_titles(populations),
        "Each column is the distribution of the |x| of a layer over its sequences, positions and dimensions: the "
        "colour is the share of the layer's values in a bin, counted exactly; white cells hold none. Bins are halves "
        f"of a factor of two. Those of the smallest |x|, which hold at most {percent(UNDRAWN)} of the values of any "
        "layer of a site, are left to distribution.parquet."
        + (" The band at the bottom is of values of exactly 0." if bins.filter(low=0).height else ""),
    )
    if not sites:
        return drawing.empty("Nothing is drawn: this run has no site, or no position in any population.")
    drawn = with_shares(bins)
    views = {population: _figure(drawn, sites, blocks, thresholds, population) for population in populations}
    return replace(drawing, views=views, data=drawn, finding=_finding(bins.filter(population=populations[0])))


def _finding(bins: pl.DataFrame) -> str:
    """The layer whose largest values are furthest above its middle ones."""
    by_layer = bins.filter(pl.col("low") > 0).group_by("site", "layer", maintain_order=True)
    layers = [(*layer, *_middle_and_top(rows)) for layer, rows in by_layer]
    if not layers:
        return ""
    site, layer, middle, low, values, total = max(layers, key=lambda one: one[3] / one[2])
    return (
        f"On {site} in layer {layer}, half of the values other than 0 have |x| below {number(middle)}, and "
        f"{number(values)} of {number(total)} {'has' if values == 1 else 'have'} at least {number(low)}."
    )


def _middle_and_top(rows: pl.DataFrame) -> tuple[float, float, int, int]:
    """Of a layer's bins above 0: the upper edge of the one that has the median, the lower edge of the last, and how
    many values it and all of them hold."""
    rows = rows.sort("low")
    total = int(rows["values"].sum())
    half = rows.filter(2 * pl.col("values").cum_sum() >= total)
    low, values = rows.select("low", "values").row(-1)
    return half["high"][0], low, values, total


def with_shares(bins: pl.DataFrame) -> pl.DataFrame:
    """The bins that are drawn, with the `share` of their layer's values that each holds."""
    layer = ("population", "site", "layer")
    shares = bins.sort(*layer, "low").with_columns(share=pl.col("values") / pl.col("values").sum().over(layer))
    above_zero = pl.when(pl.col("low") > 0).then("share").otherwise(0.0)
    # An edge is kept for all layers and populations of a site if any has more than so much below it.
    edges = (
        shares.with_columns(upto=above_zero.cum_sum().over(layer))
        .filter((pl.col("upto") > UNDRAWN) & (pl.col("low") > 0))
        .group_by("site")
        .agg(lowest=pl.col("low").min())
    )
    kept = shares.join(edges, on="site", how="left", maintain_order="left")
    return kept.filter((pl.col("low") == 0) | (pl.col("low") >= pl.col("lowest"))).drop("lowest")


def _figure(
    bins: pl.DataFrame, sites: Sequence[str], blocks: int, thresholds: Thresholds, population: str
) -> go.Figure:
    figure = panels([240] * len(sites), [population_title(population)])
    figure.update_layout(height=figure.layout.height + _BAR, margin={"t": figure.layout.margin.t + _BAR, "r": 36})
    darkest, brightest = (math.log10(float(share)) for share in (bins["share"].min(), bins["share"].max()))  # type: ignore[arg-type]
    for row, site in enumerate(sites, start=1):
        here = bins.filter(site=site)
        lines = thresholds.get(site, {})
        edges = _edges(here, lines)
        cells = here.filter(population=population)
        if cells.is_empty():
            say_nothing_here(figure, "no such tokens in this run", row, 1)
        else:
            figure.add_trace(_heat(cells, edges, blocks), row=row, col=1)
        _set_axis(figure, edges, bool((here["low"] == 0).any()), row)
        for threshold in lines:
            add_threshold(figure, threshold, math.log10(threshold), row)
        figure.update_yaxes(title_text=f"{label(site)}<br>|x| (activation)", row=row, col=1)
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    ticks = list(range(math.ceil(darkest), 1, 1 + int(-darkest) // 8))
    figure.update_layout(
        coloraxis={
            "colorscale": "Viridis", "cmin": darkest, "cmax": max(brightest, darkest + 0.1),
            "colorbar": {
                "orientation": "h", "x": 0.5, "yref": "container", "y": 1 - 22 / figure.layout.height,
                "yanchor": "top", "thickness": 12, "len": 1.0,
                "tickvals": ticks, "ticktext": [f"10<sup>{tick}</sup>" if tick else "1" for tick in ticks],
                "tickfont": {"size": 11}, "ticklabelposition": "outside bottom",
            },
        }
    )  # fmt: skip
    # A colour bar's own title overlaps it where the bar is placed in pixels.
    figure.add_annotation(
        text="share of the layer's values in a bin", xref="paper", yref="paper", x=0.5, y=1, yanchor="bottom",
        yshift=figure.layout.margin.t - 21, showarrow=False,
    )  # fmt: skip
    set_layer_axis(figure, blocks - 1, len(sites))
    return figure


def _edges(bins: pl.DataFrame, thresholds: Mapping[float, Sequence[str]]) -> list[float]:
    """Edges of all half octaves that have a value in some population, and of a threshold above them."""
    positive = bins.filter(pl.col("low") > 0)
    if positive.is_empty():
        return [1.0, 1.5]
    low, high = positive["low"].min(), max(positive["high"].max(), *thresholds, 0.0)  # type: ignore[type-var]
    edges = [float(low)]  # type: ignore[arg-type]
    while edges[-1] < high:  # type: ignore[operator]
        mantissa, exponent = math.frexp(edges[-1])
        edges.append(1.5 * edges[-1] if mantissa == 0.5 else 2.0**exponent)
    return edges


def _heat(cells: pl.DataFrame, edges: Sequence[float], blocks: int) -> go.Heatmap:
    bottom = math.log10(edges[0])
    rows = {edge: index for index, edge in enumerate([0.0, None, *edges[:-1]])}  # None: between zeros and the rest
    z: list[list[float | None]] = [[None] * blocks for _ in rows]
    said: list[list[tuple[str, str, str] | None]] = [[None] * blocks for _ in rows]
    for low, high, layer, values, share in cells.select("low", "high", "layer", "values", "share").rows():
        span = f"|x| from {number(low)} to {number(high)}" if low else "x = 0"
        z[rows[low]][layer] = math.log10(share)
        said[rows[low]][layer] = (span, count(values, "value"), percent(share))
    return go.Heatmap(
        x0=0,
        dx=1,
        y=[bottom - 2 * _ZEROS, bottom - _ZEROS, *map(math.log10, edges)],
        z=z,
        customdata=said,
        hovertemplate="layer %{x}, %{customdata[0]}<br>%{customdata[1]}, %{customdata[2]} of all<extra></extra>",
        hoverongaps=False,
        coloraxis="coloraxis",
    )


def _set_axis(figure: go.Figure, edges: Sequence[float], zeros: bool, row: int) -> None:
    low, high = math.log10(edges[0]), math.log10(edges[-1])
    exponents = range(math.ceil(low), math.floor(high) + 1, 1 + int(high - low) // 8)
    ticks = [(float(k), power(k)) for k in exponents]
    if zeros:
        ticks.insert(0, (low - 1.5 * _ZEROS, "0"))
    figure.update_yaxes(
        range=[low - (2.3 * _ZEROS if zeros else 0), high + 0.1],
        tickvals=[at for at, _ in ticks],
        ticktext=[text for _, text in ticks],
        row=row,
    )
