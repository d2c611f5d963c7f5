"""The figure of the rules side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import plotly.graph_objects as go
import polars as pl

from outlier_features.dim_marks import dim_mark
from outlier_features.figures.dimension_map import (
    MAX_ROWS,
    add_step_legend,
    add_steps,
    chosen_dims,
    none_selected,
)
from outlier_features.figures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Drawing,
    add_legend_entry,
    capped,
    panels,
    say_nothing_here,
    set_dim_rows,
    set_layer_axis,
)
from outlier_features.populations import over_population, population_title, population_titles
from outlier_features.wording import capital, count, listing, number, rules_named, some

# Seven that stay apart when pale, too: no pale one looks like another in full colour.
_COLOURS = (VERMILLION, BLUE, ORANGE, GREEN, INK, PURPLE, SKY)
_LANES = 0.72  # of a row, that the rules' bars share


def rules_side_by_side(
    dims: pl.DataFrame, sites: Mapping[str, Sequence[str]], blocks: int, populations: Sequence[str]
) -> Drawing:
    """From where to where each selected dim has hits by each rule, and where it steps up and down.

    sites   of this run that each rule was applied to
    """
    chosen = chosen_dims(dims, sites)
    shown = chosen[:MAX_ROWS]
    applied = {rule: names for rule, names in sites.items() if names}
    drawing = Drawing(
        "rules",
        "Rules side by side",
        "; ".join(f"{rule} on {' + '.join(names)}" for rule, names in applied.items()) or "none",
        listing(applied) if applied else "none",
        population_titles(populations),
        "For each dimension that one of the rules selects in a population, a rule's bar reaches from the first to the "
        "last layer with a hit by it, in any sequence; it is pale where the dimension has hits by a rule that does not "
        "select it. Triangles mark the step-up and step-down layers on resid_post."
        + capped(len(chosen), len(shown), "dimension"),
    )
    if not shown:
        return drawing.empty(none_selected(sites))
    bars = _bars(dims, shown, list(applied))
    columns = ("population", "dim", "rule", "sites", "selected", "kind", "sequences_passing", "first_layer",
               "last_layer", "step_up", "step_down")  # fmt: skip
    views = {
        population: _figure(bars.filter(population=population), shown, list(applied), blocks, population)
        for population in populations
    }
    finding = _finding(dims.filter(pl.col("rule").is_in([*applied])), list(applied), populations)
    return replace(drawing, views=views, data=bars.select(columns), finding=finding)


def _finding(dims: pl.DataFrame, rules: Sequence[str], populations: Sequence[str]) -> str:
    """How far the rules agree, in the first population in which one selects a dim."""
    for population in populations:
        selected = dims.filter("selected", population=population)
        if selected.is_empty():
            continue
        by_dim = selected.group_by("dim").agg(pl.col("rule").n_unique())
        found, over = count(len(by_dim), "dimension"), over_population(population)
        if len(rules) == 1:
            return f"{capital(rules_named(rules, 'select'))} {found} {over}."
        alike = sorted(by_dim.filter(rule=len(rules))["dim"])
        agreed = (
            f"all agree on {number(len(alike))} ({some([*map(dim_mark, alike)], 3)})"
            if alike
            else "they all agree on none"
        )
        rule, most = selected.group_by("rule").len().sort("len", "rule").row(-1)
        return (
            f"{capital(over)}, {len(rules)} rules together select {found}, {rule} the most ({number(most)}); {agreed}; "
            f"one rule alone selects {number(by_dim.filter(rule=1).height)}."
        )
    return ""


def _bars(dims: pl.DataFrame, shown: Sequence[int], rules: Sequence[str]) -> pl.DataFrame:
    """By each rule, the dims that one of them selects in the same population."""
    found = dims.filter(pl.col("rule").is_in(rules), pl.col("dim").is_in(shown))
    return found.filter(pl.col("selected").any().over("population", "dim"))


def _figure(bars: pl.DataFrame, shown: Sequence[int], rules: Sequence[str], blocks: int, population: str) -> go.Figure:
    figure = panels([max(90, (4 + 12 * max(2, len(rules))) * len(shown) + 30)], [population_title(population)])
    if bars.is_empty():
        say_nothing_here(figure, "no dimension is selected", 1, 1)
    for index, rule in enumerate(rules):
        _add_bars(figure, bars.filter(rule=rule), shown, rule, index, len(rules))
    add_steps(figure, bars, shown, 1)
    set_dim_rows(figure, shown)
    figure.update_yaxes(title_text="dimension", row=1, col=1)
    figure.update_layout(barmode="overlay")
    set_layer_axis(figure, blocks - 1, 1)
    for index, rule in enumerate(rules):
        add_legend_entry(figure, f"rule {rule}", marker={"symbol": "square", "size": 12, "color": _colour(index)})
    add_step_legend(figure)
    return figure


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _add_bars(figure: go.Figure, bars: pl.DataFrame, shown: Sequence[int], rule: str, index: int, rules: int) -> None:
    """`index`: which of how many rules, from above."""
    lane = _LANES * ((index + 0.5) / rules - 0.5)
    for selected in (True, False):
        part = bars.filter(pl.col("selected") == selected).sort("dim")
        first, last = part["first_layer"].to_list(), part["last_layer"].to_list()
        kinds = [kind or "not selected" for kind in part["kind"].to_list()]
        figure.add_bar(
            base=[layer - 0.4 for layer in first],
            x=[end - start + 0.8 for start, end in zip(first, last, strict=True)],
            y=[shown.index(dim) + lane for dim in part["dim"].to_list()],
            orientation="h",
            width=0.84 * _LANES / rules,
            customdata=list(zip(part["dim"], first, last, kinds, part["sequences_passing"], strict=True)),
            hovertemplate=f"dimension %{{customdata[0]}}, rule {rule}<br>layers %{{customdata[1]}} to "
            "%{customdata[2]}<br>kind: %{customdata[3]}, sequences passing: %{customdata[4]}<extra></extra>",
            marker={"color": _colour(index), "opacity": 1.0 if selected else 0.25},
            name=f"rule {rule}",
            showlegend=False,
            row=1,
            col=1,
        )
