"""The figure of rule `location`: where kept occurrences lie, by layer and by position."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go

from outlier_features.figure_style import BLUE, LAYER_AXIS, ORANGE, SKY, Drawing, add_legend_entry, label, panels
from outlier_features.wording import listing, number, percent

_SERIES = (
    ("layers", 1, "occurrences in a layer", BLUE),
    ("first_layers", 1, "locations first hit in a layer", ORANGE),
    ("tokens", 2, "occurrences at a position", SKY),
)


def locations_by_layer(document: Mapping[str, Any], population: str) -> Drawing:
    """Kept occurrences by layer and position, and the first layers of locations, a row of panels for each site."""
    found = document["populations"][population]["sites"]
    sites = [site for site, counts in found.items() if counts["occurrences"]]
    sign = ">=" if document["inclusive"] else ">"
    fraction = document["min_layer_fraction"]
    drawing = Drawing(
        "locations",
        "Locations over a threshold",
        listing(found) if found else "none",
        f"location, |x| {sign} {number(document['threshold'])} in {percent(fraction)} of the layers",
        population,
        "Left: kept occurrences in each layer, and in which layer the kept locations (sequence, position, dimension) "
        "have their first. Right: kept occurrences at each position. Each site is counted for itself."
        + "".join(f" On {site} nothing was kept." for site in found if site not in sites),
    )
    if not found:
        return drawing.empty("Nothing is drawn: the rule was not applied, as its sites are not in this run.")
    if not sites:
        return drawing.empty(drawing.text + " So nothing is drawn.")
    return replace(drawing, figure=_figure({site: found[site] for site in sites}))


def _figure(found: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    figure = panels([190] * len(found), ["by layer", "by position"], shared_xaxes=False, shared_yaxes=False)
    figure.update_layout(barmode="overlay", bargap=0.15)
    for row, (site, counts) in enumerate(found.items(), start=1):
        for name, column, title, colour in _SERIES:
            _add_bars(figure, counts[name], title, colour, row, column, narrow=name == "first_layers")
        figure.update_yaxes(title_text=f"{label(site)}<br>count", row=row, col=1)
    figure.update_xaxes(title_text=LAYER_AXIS, row=len(found), col=1)
    figure.update_xaxes(title_text="position (token, from 0)", row=len(found), col=2)
    figure.update_yaxes(rangemode="tozero")
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
