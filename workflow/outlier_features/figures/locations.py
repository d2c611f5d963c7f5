"""The figure of rule `location`: where kept occurrences lie, by layer and by position."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.dim_marks import marked_of
from outlier_features.figures.style import BLUE, LAYER_AXIS, ORANGE, SKY, Drawing, add_legend_entry, label, panels
from outlier_features.populations import over_population, population_title, population_titles
from outlier_features.wording import capital, count, listing, number, percent

_SERIES = (
    ("layers", 1, "occurrences in a layer", BLUE),
    ("first_layers", 1, "locations first hit in a layer", ORANGE),
    ("tokens", 2, "occurrences at a position", SKY),
)


def locations_by_layer(document: Mapping[str, Any]) -> Drawing:
    """Kept occurrences by layer and position, and the first layers of locations, a row of panels for each site."""
    found = {population: part["sites"] for population, part in document["populations"].items()}
    every = list(next(iter(found.values())))
    sites = [site for site in every if any(part[site]["occurrences"] for part in found.values())]
    sign = ">=" if document["inclusive"] else ">"
    layer_share = document["layer_share"]
    drawing = Drawing(
        "locations",
        "Locations over a threshold",
        listing(every) if every else "none",
        f"location, |x| {sign} {number(document['threshold'])} in {percent(layer_share)} of the layers",
        population_titles(found),
        "Left: kept occurrences in each layer, and in which layer the kept locations (sequence, position, dimension) "
        "have their first. Right: kept occurrences at each position. Each site is counted for itself."
        + "".join(f" On {site} nothing was kept." for site in every if site not in sites),
    )
    if not every:
        return drawing.empty("Nothing is drawn: the rule was not applied, as its sites are not in this run.")
    if not sites:
        return drawing.empty(marked_of(drawing.text) + " So nothing is drawn.")
    kept = {population: {site: part[site] for site in sites} for population, part in found.items()}
    views = {population: _figure(part, population) for population, part in kept.items()}
    finding = _finding(next(iter(kept.values())), next(iter(kept)))
    return replace(drawing, views=views, data=_drawn(kept), min_width=640, finding=finding)


def _finding(sites: Mapping[str, Mapping[str, Any]], population: str) -> str:
    """The site with most kept occurrences, and the layer and position that have most of them."""
    site, found = max(sites.items(), key=lambda item: item[1]["occurrences"])
    if not found["occurrences"]:
        return ""
    (layer, in_layer), (token, at_token) = (
        max(((line[key], line["count"]) for line in found[f"{key}s"]), key=lambda one: one[1])
        for key in ("layer", "token")
    )
    return (
        f"{capital(over_population(population))}, {count(found['occurrences'], 'occurrence')} at "
        f"{count(found['locations'], 'location')} are kept on {site}, most in layer {layer} ({number(in_layer)}) and "
        f"at position {token} ({number(at_token)})."
    )


def _drawn(kept: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> pl.DataFrame:
    """A row for each bar."""
    return pl.DataFrame(
        {"population": population, "site": site, "series": title, "index": index, "count": line["count"],
         "share": line["share"]}
        for population, part in kept.items()
        for site, counts in part.items()
        for name, _, title, _ in _SERIES
        for line in counts[name]
        for index in [next(iter(line.values()))]
    )  # fmt: skip


def _figure(found: Mapping[str, Mapping[str, Any]], population: str) -> go.Figure:
    titles = [f"by layer, {population_title(population)}", f"by position, {population_title(population)}"]
    figure = panels([190] * len(found), titles, shared_xaxes=False, shared_yaxes=False, horizontal_spacing=0.1)
    figure.update_layout(barmode="overlay", bargap=0.15)
    for row, (site, counts) in enumerate(found.items(), start=1):
        for name, column, title, colour in _SERIES:
            _add_bars(figure, counts[name], title, colour, row, column, narrow=name == "first_layers")
        figure.update_yaxes(title_text=f"{label(site)}<br>count", row=row, col=1)
    figure.update_xaxes(title_text=LAYER_AXIS, row=len(found), col=1)
    figure.update_xaxes(title_text="position (token, from 0)", row=len(found), col=2)
    figure.update_yaxes(rangemode="tozero", tickformat=",")
    for _, _, title, colour in _SERIES:
        add_legend_entry(figure, title, marker={"symbol": "square", "size": 12, "color": colour})
    return figure


def _add_bars(
    figure: go.Figure, rows: Sequence[Mapping[str, Any]], title: str, colour: str, row: int, column: int, narrow: bool
) -> None:
    index = [next(iter(line.values())) for line in rows]
    figure.add_bar(
        x=index,
        y=[line["count"] for line in rows],
        customdata=[percent(line["share"]) for line in rows],
        width=0.35 if narrow else None,
        name=title,
        showlegend=False,
        marker={"color": colour, "line": {"width": 0}},
        hovertemplate="%{x}: %{y:,} (%{customdata})" + f"<extra>{title}</extra>",
        row=row,
        col=column,
    )
