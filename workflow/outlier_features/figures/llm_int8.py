"""Figures 3 and 4 of LLM.int8() (Dettmers et al. 2022), of the runs."""

from dataclasses import replace

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.compared_runs import Compared, range_of_runs
from outlier_features.figures.run_points import (
    WIDTH,
    Series,
    draw_points,
    legend,
    log_axis_of,
    panel_size,
    parameters_in_short,
    share_axis,
)
from outlier_features.figures.style import BLUE, GREEN, VERMILLION, Drawing, label, panels
from outlier_features.populations import population_titles
from outlier_features.wording import listing, number

_HEIGHT = 300
_SHARES = (("layer_share_mean", "layer share", BLUE), ("position_share_mean", "position share", VERMILLION))
_MAGNITUDES = (("magnitude_median", "median magnitude", GREEN), ("dims", "number of dims", BLUE))
_SAID = (
    " Hollow points are those of the paper's Table 4, whose perplexity is on C4's validation set; how it averages is "
    "not said. Perplexity compares only models of one tokenizer."
)


def llm_int8_figures(compared: Compared) -> list[Drawing]:
    """Shares of layers and positions against size and perplexity; magnitude and number of dims against perplexity."""
    rules = compared.systematic
    place = (compared.sites_of(rules), listing(rules) or "none", population_titles(compared.populations))
    shares = Drawing(
        "llm-int8-figure-3",
        "Layers and positions affected, as figure 3 of LLM.int8()",
        *place,
        "Each run is two points: the mean over its selected dims of the layer share and of the position share, by the "
        "rule's own readings. Bars are 95 % intervals over sequences." + _SAID + compared.left_out("parameters"),
        min_width=WIDTH,
    )
    magnitudes = Drawing(
        "llm-int8-figure-4",
        "Magnitude and number of outlier dims, as figure 4 of LLM.int8()",
        *place,
        "Left: of the selected dim with the most hits the largest |x| of a sequence, median over the sequences in "
        "which the dim passes; the paper's is the median of all its outlier values. Right: how many dims the rule "
        "selects. Bars are 95 % intervals over sequences; those of the number of dims lie too low, as a draw lacks a "
        "third of the sequences." + _SAID + compared.left_out("perplexity"),
        min_width=WIDTH,
    )
    if not rules:
        why = "Nothing is drawn: no rule with shares of layers and positions was applied in any run."
        return [shares.empty(why), magnitudes.empty(why)]
    rows = compared.models.filter(pl.col("rule").is_in(rules))
    names = ("run", "rule", "sites", "population", "parameters", "perplexity")

    def data(columns: tuple[tuple[str, str, str], ...]) -> pl.DataFrame:
        return rows.select(
            *names, *(f"{name}{end}" for name, *_ in columns for end in ("", "_low", "_high")),
            *(f"published_{name}" for name, *_ in columns),
        )  # fmt: skip

    return [
        replace(
            shares,
            views={population: _shares(compared, population) for population in compared.populations},
            data=data(_SHARES),
            finding=range_of_runs(compared, [name for name, *_ in _SHARES], rules[0]),
        ),
        replace(
            magnitudes,
            views={population: _magnitudes(compared, population) for population in compared.populations},
            data=data(_MAGNITUDES),
            finding=range_of_runs(compared, [name for name, *_ in _MAGNITUDES], rules[0]),
        ),
    ]


def _shares(compared: Compared, population: str) -> go.Figure:
    rules = compared.systematic
    figure = panels([_HEIGHT] * len(rules), ["against parameters", "against perplexity"], gap=34, shared_xaxes=False)
    for column, (across, title, words) in enumerate(
        (("parameters", "total parameters", parameters_in_short), ("perplexity", "perplexity", number)), start=1
    ):
        series = {
            rule: [
                Series(name, colour, compared.points(rule, population, None, across, up, sweep=False))
                for up, name, colour in _SHARES
            ]
            for rule in rules
        }
        axis = log_axis_of(title, (p.x for those in series.values() for one in those for p in one.points), words)
        for row, rule in enumerate(rules, start=1):
            draw_points(figure, row, column, series[rule], axis, share_axis("share"), panel_size(2, _HEIGHT))
        figure.update_xaxes(title_text=title, row=len(rules), col=column)
    for row, rule in enumerate(rules, start=1):
        figure.update_yaxes(title_text=f"{label(rule)}<br>share", row=row, col=1)
    legend(figure, [(name, colour) for _, name, colour in _SHARES], published=True, kinds=True)
    return figure


def _magnitudes(compared: Compared, population: str) -> go.Figure:
    rules = compared.systematic
    figure = panels(
        [_HEIGHT] * len(rules), [title for _, title, _ in _MAGNITUDES], gap=34, shared_xaxes=False, shared_yaxes=False,
        horizontal_spacing=0.08,
    )  # fmt: skip
    series = {
        (rule, up): Series(title, colour, [
            point for point in compared.points(rule, population, None, "perplexity", up, sweep=False) if point.y > 0
        ])
        for rule in rules
        for up, title, colour in _MAGNITUDES
    }  # fmt: skip
    across = log_axis_of("perplexity", (point.x for one in series.values() for point in one.points), number)
    for row, rule in enumerate(rules, start=1):
        for column, (up, title, _) in enumerate(_MAGNITUDES, start=1):
            one = series[rule, up]
            axis = log_axis_of(title, _reached(one), number)
            draw_points(figure, row, column, [one], across, axis, panel_size(2, _HEIGHT))
        figure.update_yaxes(title_text=f"{label(rule)}<br>|x| (activation)", row=row, col=1)
        figure.update_yaxes(title_text="dims", row=row, col=2)
    figure.update_xaxes(title_text="perplexity", row=len(rules))
    legend(figure, [], published=True, kinds=True)
    return figure


def _reached(series: Series) -> list[float]:
    ends = (value for point in series.points for value in (point.low, point.y, point.high))
    return [value for value in ends if value]
