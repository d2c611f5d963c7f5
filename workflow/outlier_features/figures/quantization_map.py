"""The figure of what rounding costs linear layers: a cell for each, scheme by scheme."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.style import Drawing, above, label, panels, set_layer_axis
from outlier_features.files.quantization_columns import BOTH, INPUT, NONE, WEIGHT
from outlier_features.populations import over_population
from outlier_features.quantize.remedy_errors import measured, of_outputs, whole
from outlier_features.wording import capital, listing, number, percent

_ROW, _LEAST = 24, 96  # pixels of a row, and of all
_ROUNDED = {BOTH: "input and weight rounded", INPUT: "input alone rounded", WEIGHT: "weight alone rounded"}
_ALONE = {INPUT: "its input alone", WEIGHT: "its weight alone"}
_OF_OUTPUTS = (
    "Colour: ||Q(X) Q(W) - X W|| / ||X W|| of a linear layer, X its input and W its weight, on first and massive "
    "tokens and a sample of the others; above with both rounded, then with X alone, then with W alone. Rows are kinds "
    "of linear layers, grouped by the site that they read."
)
_OF_INPUTS = (
    "Colour: ||Q(X) - X|| / ||X|| of what linear layers read, X, over all tokens. A dump has no weights, so that "
    "nothing is known of outputs."
)
_TICKS = [digit * 10.0**exponent for exponent in range(-6, 3) for digit in (1, 2, 5)]
_COLUMNS = ("layer", "site", "module", "scheme", "quantized", "population", "error", "output_error_sd",
            "sqnr_db", "bits")  # fmt: skip


def quantization_map(quantization: pl.DataFrame, scheme: str, populations: Sequence[str]) -> Drawing:
    """Error of each linear layer without a remedy, a row for each kind of them; a menu for the schemes.

    scheme   that is drawn at first
    """
    errors = measured(quantization).filter(remedy=NONE)
    several = errors.group_by("kind", "layer").agg(pl.col("module").n_unique())["module"].to_list()
    drawing = Drawing(
        "quantization-map",
        "What rounding costs each linear layer",
        " + ".join(errors["site"].drop_nulls().unique(maintain_order=True)) or "none",
        f"none; rounded by {listing(errors['scheme'].unique(maintain_order=True))}",
        listing(populations),
        (_OF_OUTPUTS if of_outputs(quantization) else _OF_INPUTS)
        + " The menu has the schemes, all in the same colours."
        + (
            " Of several of a kind in one block, such as experts, the largest error."
            if max(several, default=1) > 1
            else ""
        )
        + " A grey cell: the block has no such layer.",
        min_width=560,
    )
    if errors.is_empty():
        return drawing.empty("Nothing is drawn: no linear layer could be measured.")
    schemes = errors["scheme"].unique(maintain_order=True).to_list()
    first = scheme if scheme in schemes else schemes[0]
    return replace(
        drawing,
        views={name: _figure(errors, schemes, first, name) for name in populations},
        data=errors.select(_COLUMNS),
        finding=_finding(errors.filter(scheme=first, population=populations[0]), first, populations[0]),
    )


def _finding(errors: pl.DataFrame, scheme: str, population: str) -> str:
    """The kind of layers that the scheme costs most, by its input and by its weight, beside the one it costs least."""
    kinds = whole(errors).group_by("kind", maintain_order=True).agg(pl.col("error").median()).sort("error")
    if kinds.is_empty():
        return ""
    (least, low), (most, high) = kinds.row(0), kinds.row(-1)
    alone = dict(errors.filter(kind=most).group_by("quantized").agg(pl.col("error").median()).iter_rows())
    parts = [f"{percent(alone[what])} by {name}" for what, name in _ALONE.items() if what in alone and BOTH in alone]
    by = f" ({listing(parts)})" if parts else ""
    text = f"{capital(over_population(population))}, {scheme} costs {most} most, {percent(high)}{by}"
    rest = f", and {least} least, {percent(low)}" if len(kinds) > 1 else ""
    return f"{text}{rest}: errors, medians over the blocks."


def _figure(errors: pl.DataFrame, schemes: Sequence[str], first: str, population: str) -> go.Figure:
    errors = errors.with_columns(pl.col("site").fill_null("other inputs"))
    kinds = _kinds(errors)
    here = errors.filter(population=population)
    whats = [what for what in _ROUNDED if (errors["quantized"] == what).any()]
    figure = panels([max(_ROW * len(kinds), _LEAST)] * len(whats), [""], gap=34)
    logs = errors.filter(pl.col("error") > 0)["error"].log10()
    ends = (logs.min() or 0.0, logs.max() or 0.0)
    last = int(errors["layer"].to_numpy().max())
    for scheme in schemes:
        for row, what in enumerate(whats, start=1):
            cells = _cells(here.filter(scheme=scheme, quantized=what))
            heat = _heat(cells, kinds, last, ends, _ROUNDED[what])
            figure.add_trace(heat.update(visible=scheme == first, showscale=row == 1), row=row, col=1)
    for row, what in enumerate(whats, start=1):
        ticks = {"tickvals": [*range(len(kinds))], "ticktext": [label(kind) for _, kind in kinds]}
        figure.update_yaxes(**ticks, range=[len(kinds) - 0.5, -0.5], showgrid=False, row=row, col=1)
        figure.add_annotation(
            text=_ROUNDED[what], x=0, y=1, xref="x domain", yref="y domain", xanchor="left", yanchor="bottom",
            showarrow=False, font={"size": 12}, row=row, col=1,
        )  # fmt: skip
        for place in range(1, len(kinds)):
            if kinds[place][0] != kinds[place - 1][0]:
                figure.add_hline(y=place - 0.5, line={"color": "white", "width": 3}, row=row, col=1)
    set_layer_axis(figure, last, len(whats))
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(title_text="linear layer", row=(len(whats) + 1) // 2, col=1)
    buttons = [
        {"label": f"scheme {scheme}", "method": "update",
         "args": [{"visible": [one == scheme for one in schemes for _ in whats]}]}
        for scheme in schemes
    ]  # fmt: skip
    menu = {"buttons": buttons, "active": schemes.index(first), "x": 0, "xanchor": "left", "y": above(figure),
            "yanchor": "bottom", "bgcolor": "white", "font": {"size": 12}, "pad": {"t": 0, "b": 0}}  # fmt: skip
    figure.update_layout(updatemenus=[menu], margin_l=150, margin_r=96, margin_t=84)
    return figure


def _kinds(errors: pl.DataFrame) -> list[tuple[str, str]]:
    """Site and kind, in the order of the model, sites together."""
    found = errors.select("site", "kind").unique(maintain_order=True).rows()
    sites = list(dict.fromkeys(site for site, _ in found))
    return sorted(found, key=lambda one: sites.index(one[0]))


def _cells(rows: pl.DataFrame) -> dict[tuple[str, str, int], dict[str, Any]]:
    """By site, kind and layer, the layer with the largest error."""
    ordered = rows.sort("error")
    return {(row["site"], row["kind"], row["layer"]): row for row in ordered.iter_rows(named=True)}


def _heat(
    cells: dict[tuple[str, str, int], dict[str, Any]],
    kinds: Sequence[tuple[str, str]],
    last: int,
    ends: tuple[Any, Any],
    what: str,
) -> go.Heatmap:
    found = [[cells.get((site, kind, layer)) for layer in range(last + 1)] for site, kind in kinds]
    low, high = ends
    # Of a share of a percent four digits are plenty, and the page holds many.
    logs = [[round(math.log10(one["error"]), 3) if one and one["error"] > 0 else None for one in line]
            for line in found]  # fmt: skip
    return go.Heatmap(
        x=[*range(last + 1)],
        y=[*range(len(kinds))],
        z=logs,
        customdata=[[_said(one) for one in line] for line in found],
        hovertemplate=f"%{{customdata}}<br>{what}<extra></extra>",
        hoverongaps=False,
        colorscale="Viridis",
        zmin=low,
        zmax=high,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "error<br> "}, "tickvals": [math.log10(tick) for tick in _TICKS],
                  "ticktext": [*map(percent, _TICKS)], "thickness": 12},
    )  # fmt: skip


def _said(row: dict[str, Any] | None) -> str | None:
    if row is None:
        return None
    sd = "" if row["output_error_sd"] is None else f" ± {percent(row['output_error_sd'])}"
    decibels = "" if row["sqnr_db"] is None else f"<br>SQNR {number(row['sqnr_db'])} dB of what is rounded"
    reads = f"{label(row['module'])} reads {label(row['site'])}"
    return f"{reads}<br>error {percent(row['error'])}{sd}{decibels}"
