"""Figures of the shares of layers and positions against size and loss, dense models and mixtures of experts apart."""

from collections.abc import Sequence
from dataclasses import replace

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.compared_runs import Compared, range_of_runs
from outlier_features.figures.run_points import (
    DENSE,
    MIXTURE,
    WIDTH,
    Series,
    draw_points,
    legend,
    log_axis_of,
    panel_size,
    parameters_in_short,
    share_axis,
)
from outlier_features.figures.style import BLUE, VERMILLION, Drawing, label, panels
from outlier_features.populations import population_titles
from outlier_features.wording import listing, number

_HEIGHT = 300
_SERIES = (("layer_share", "layer share", BLUE), ("position_share", "position share", VERMILLION))
ACROSS = {
    "parameters": ("total parameters", parameters_in_short),
    "active_parameters": ("active parameters", parameters_in_short),
    "perplexity": ("perplexity", number),
    "bits_per_byte": ("bits per byte", number),
}


def shares_by_size(compared: Compared) -> list[Drawing]:
    """A figure for each of total and active parameters, perplexity and bits per byte, and for mean and median.

    Shares are of pairs, as published sweeps count them.
    """
    return [_drawing(compared, across, how) for across in ACROSS for how in ("mean", "median")]


def _drawing(compared: Compared, across: str, how: str) -> Drawing:
    title, _ = ACROSS[across]
    rules = compared.systematic
    columns = [f"sweep_{share}_{how}" for share, *_ in _SERIES]
    lacking = compared.lacking(columns[0], rules)
    drawing = Drawing(
        f"shares-by-{across.replace('_', '-')}-{how}",
        f"Shares against {title}, {how}",
        compared.sites_of(rules),
        listing(rules) or "none",
        population_titles(compared.populations),
        f"Each run is two points: the {how} over its (sequence, dim) pairs of the share of site tensors and of the "
        "share of positions with a hit, of the pairs that pass when layers are counted as site tensors with a hit "
        "(sites_share) and positions as those with a hit anywhere (union). That is how published sweeps count, whose "
        "numbers are hollow. Bars are 95 % intervals over sequences; lines say nothing of what lies between."
        + (f" Without a passing pair there is no share: {lacking}." if lacking else "")
        + (" Perplexity compares only models of one tokenizer, and published ones are of other texts."
           if across == "perplexity" else "")
        + compared.left_out(across),
        min_width=WIDTH,
    )  # fmt: skip
    if not rules:
        return drawing.empty("Nothing is drawn: no rule with shares of layers and positions was applied in any run.")
    views = {population: _figure(compared, across, columns, population) for population in compared.populations}
    names = ("run", "rule", "sites", "population", across, "routed_experts",
             *(f"{name}{end}" for name in columns for end in ("", "_low", "_high")),
             *(f"published_{name}" for name in columns))  # fmt: skip
    data = compared.models.filter(pl.col("rule").is_in(rules)).select(names)
    return replace(
        drawing, views=views, data=data, finding=range_of_runs(compared, columns, rules[0], (across, *ACROSS[across]))
    )


def _figure(compared: Compared, across: str, columns: Sequence[str], population: str) -> go.Figure:
    rules = compared.systematic
    figure = panels(
        [_HEIGHT] * len(rules),
        ["dense models", "mixtures of experts"],
        gap=34,
        shared_xaxes=False,
        horizontal_spacing=0.03,
    )
    series = {
        (rule, kind): [
            Series(share, colour, compared.points(rule, population, kind, across, name, sweep=True))
            for name, (_, share, colour) in zip(columns, _SERIES, strict=True)
        ]
        for rule in rules
        for kind in (DENSE, MIXTURE)
    }
    title, words = ACROSS[across]
    for column, kind in enumerate((DENSE, MIXTURE), start=1):
        known = [point.x for rule in rules for one in series[rule, kind] for point in one.points]
        axis = log_axis_of(title, known, words)
        for row, rule in enumerate(rules, start=1):
            draw_points(figure, row, column, series[rule, kind], axis, share_axis("share"), panel_size(2, _HEIGHT))
    for row, rule in enumerate(rules, start=1):
        figure.update_yaxes(title_text=f"{label(rule)}<br>share", row=row, col=1)
    figure.update_xaxes(title_text=title, row=len(rules))
    legend(figure, [(name, colour) for _, name, colour in _SERIES], published=True, kinds=False)
    return figure
