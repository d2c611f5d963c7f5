"""The figure of remedies: what each leaves of the errors of linear layers, beside the random control."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.style import (
    BLUE,
    GREY,
    INK,
    VERMILLION,
    Drawing,
    add_legend_entry,
    label,
    panels,
)
from outlier_features.files.quantization_columns import EXACT_DIMS, EXACT_POSITIONS, EXACT_RANDOM, NONE
from outlier_features.populations import over_population
from outlier_features.quantize.remedy_errors import TOLD, measured, of_outputs, remedy_errors, whole
from outlier_features.wording import capital, count, listing, number, percent

_ROW = 26  # pixels
_QUARTILES = {"low": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "high": 0.95}
_MEASURES = {"error": "error", "left": "of the error without a remedy"}
_CONTROL = " Grey: {} of as many random dims, all together; selected dims pay where they leave less."
_FORMULAS = {True: "||Q(X) Q(W) - X W|| / ||X W||", False: "||Q(X) - X|| / ||X||"}  # of outputs, or of inputs


def quantization_remedies(quantization: pl.DataFrame, scheme: str, populations: Sequence[str]) -> Drawing:
    """Median and spread over linear layers of the error, and of what is left of each layer's own, by remedy.

    scheme   that the finding is of
    """
    errors = remedy_errors(whole(measured(quantization)))
    draws = len(_settings(errors, EXACT_RANDOM))
    formula = _FORMULAS[of_outputs(quantization)]
    drawing = Drawing(
        "quantization-remedies",
        "What each remedy leaves",
        " + ".join(errors["site"].drop_nulls().unique(maintain_order=True)) or "none",
        f"exact dims: {listing(_settings(errors, EXACT_DIMS)) or 'none selected'}"
        + "".join(f"; exact tokens: {which}" for which in _settings(errors, EXACT_POSITIONS)),
        listing(populations),
        f"Left: {formula} of linear layers. Right: that over the same layer's without a remedy, so that each is "
        "compared with itself; left of the dashed line a remedy pays. Marks: the median over the linear layers that it "
        "was tried on, whose number stands beside its name; thick lines: the middle half; thin lines: nine tenths."
        + (_CONTROL.format(count(draws, "draw")) if draws else "")
        + " The best alpha and quantile are chosen by this very error, layer by layer.",
        min_width=820,
    )
    if errors.filter(pl.col("told") != NONE).is_empty():
        return drawing.empty("Nothing is drawn: no remedy was tried.")
    drawn = _drawn(errors)
    return replace(
        drawing,
        views={name: _figure(drawn.filter(population=name), drawn, formula) for name in populations},
        data=drawn,
        finding=_finding(drawn.filter(population=populations[0], scheme=scheme), scheme, populations[0]),
    )


def _settings(errors: pl.DataFrame, remedy: str) -> list[str]:
    return errors.filter(remedy=remedy)["setting"].drop_nulls().unique(maintain_order=True).to_list()


def _drawn(errors: pl.DataFrame) -> pl.DataFrame:
    """A row for each population, scheme and remedy: quantiles over the linear layers, and how many these are."""
    return errors.group_by("population", "scheme", "told", maintain_order=True).agg(
        pl.col("module").n_unique().alias("modules"),
        *(
            pl.col(measure).quantile(share, "linear").alias(f"{measure}_{end}")
            for measure in _MEASURES
            for end, share in _QUARTILES.items()
        ),
    )


def _finding(drawn: pl.DataFrame, scheme: str, population: str) -> str:
    """What is left with the selected dims exact, with random ones, and by the best of what was tried on all layers."""
    rows = {row["told"]: row for row in drawn.drop_nulls("left_median").iter_rows(named=True)}
    told = [told for told in (EXACT_DIMS, EXACT_RANDOM) if told in rows]
    every = [
        told
        for told, row in rows.items()
        if told not in (NONE, EXACT_DIMS, EXACT_RANDOM) and row["modules"] == rows[NONE]["modules"]
    ]
    told += sorted(every, key=lambda told: float(rows[told]["left_median"]))[:1]
    if not told:
        return ""
    said = listing(f"{percent(rows[one]['left_median'])} with {TOLD[one]}" for one in told)
    return (
        f"{capital(over_population(population))}, of the errors under {scheme} are left: {said} (medians over linear "
        "layers)."
    )


def _figure(drawn: pl.DataFrame, every: pl.DataFrame, formula: str) -> go.Figure:
    schemes = every["scheme"].unique(maintain_order=True).to_list()
    told = {scheme: [t for t in TOLD if t in set(every.filter(scheme=scheme)["told"])] for scheme in schemes}
    figure = panels(
        [_ROW * len(told[scheme]) + 10 for scheme in schemes], ["error", "what is left of it"], gap=34,
        shared_yaxes=False, shared_xaxes="columns", horizontal_spacing=0.06,
    )  # fmt: skip
    for column, measure in enumerate(_MEASURES, start=1):
        for row, scheme in enumerate(schemes, start=1):
            mine = {one["told"]: one for one in drawn.filter(scheme=scheme).iter_rows(named=True)}
            for place, name in enumerate(told[scheme]):
                if name in mine and mine[name][f"{measure}_median"]:
                    _add_row(figure, mine[name], measure, place, (row, column))
            if measure == "left":
                line = {"color": INK, "dash": "dash", "width": 1.2}
                figure.add_vline(x=1, line=line, row=row, col=column, exclude_empty_subplots=False)
            names = [_name(name, mine.get(name)) for name in told[scheme]]
            figure.update_yaxes(
                tickvals=[*range(len(names))], ticktext=names if column == 1 else [""] * len(names),
                range=[len(names) - 0.5, -0.5], row=row, col=column,
            )  # fmt: skip
        title = formula if measure == "error" else "of the same layer's error without a remedy"
        _set_share_axis(figure, every, measure, title, (len(schemes), column))
    for row, scheme in enumerate(schemes, start=1):
        figure.add_annotation(
            text=f"<b>{label(scheme)}</b>", x=0, y=1, xref="x domain", yref="y domain", xanchor="left",
            yanchor="bottom", showarrow=False, font={"size": 12}, row=row, col=1,
        )  # fmt: skip
    for name, style in _STYLES.items():
        if name in set(every["told"]):
            add_legend_entry(figure, _LEGEND[name], marker={**style, "size": 10})
    figure.update_layout(margin_l=250, margin_t=84)
    return figure


_STYLES: Mapping[str, dict[str, Any]] = {
    EXACT_DIMS: {"color": VERMILLION, "symbol": "diamond"},
    EXACT_RANDOM: {"color": GREY, "symbol": "circle-open"},
    NONE: {"color": INK, "symbol": "square"},
}
_OTHER = {"color": BLUE, "symbol": "circle"}
_LEGEND = {EXACT_DIMS: "selected dims", EXACT_RANDOM: "random dims, the control", NONE: "no remedy"}


def _add_row(figure: go.Figure, row: Mapping[str, Any], measure: str, place: int, at: tuple[int, int]) -> None:
    style = _STYLES.get(row["told"], _OTHER)
    edge = style["color"] if row["told"] == EXACT_RANDOM else INK
    for (low, high), width in ((("low", "high"), 1.4), (("p25", "p75"), 5)):
        figure.add_scatter(
            x=[row[f"{measure}_{low}"], row[f"{measure}_{high}"]], y=[place, place], mode="lines",
            line={"color": style["color"], "width": width}, hoverinfo="skip", showlegend=False, row=at[0], col=at[1],
        )  # fmt: skip
    figure.add_scatter(
        x=[row[f"{measure}_median"]], y=[place], mode="markers", showlegend=False, row=at[0], col=at[1],
        marker={**style, "size": 10, "line": {"color": edge, "width": 1.5}},
        customdata=[[percent(row[f"{measure}_{end}"]) for end in _QUARTILES]],
        hovertemplate=f"{label(row['scheme'])}, {TOLD[row['told']]}<br>"
        f"{_MEASURES[measure]}: median %{{customdata[2]}}<br>"
        f"half of {count(row['modules'], 'linear layer')}: %{{customdata[1]}} to %{{customdata[3]}}<br>"
        "nine tenths: %{customdata[0]} to %{customdata[4]}<extra></extra>",
    )  # fmt: skip


def _name(told: str, row: Mapping[str, Any] | None) -> str:
    return TOLD[told] if row is None else f"{TOLD[told]} ({number(row['modules'])})"


def _set_share_axis(figure: go.Figure, drawn: pl.DataFrame, measure: str, title: str, last: tuple[int, int]) -> None:
    values = [math.log10(value) for end in _QUARTILES for value in drawn[f"{measure}_{end}"].to_list() if value]
    low, high = min(values, default=0.0) - 0.08, max(values, default=0.0) + 0.08
    digits = (1, 2, 5) if high - low < 2.2 else (1,)
    ticks = [digit * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for digit in digits]
    figure.update_xaxes(
        type="log", range=[low, high], tickvals=ticks, ticktext=[*map(percent, ticks)], tickangle=0, col=last[1]
    )
    figure.update_xaxes(title_text=title, row=last[0], col=last[1])
