"""The figure of where in a sequence hits lie, and how large |x| is at each position."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.style import (
    BLUE,
    VERMILLION,
    Drawing,
    add_legend_entry,
    add_threshold,
    label,
    panels,
    say_nothing_here,
)
from outlier_features.populations import over_population, population_title, population_titles
from outlier_features.rules.rule import HitRule
from outlier_features.wording import count, listing, number

_POSITION_AXIS = "position (token, from 0)"
_SAID = 4  # sites in a sentence
_FIRST = {"symbol": "star-diamond", "size": 12, "color": VERMILLION, "line": {"color": "black", "width": 1}}


def positions(profile: pl.DataFrame, rules: Mapping[str, HitRule], populations: Sequence[str]) -> Drawing:
    """Sequences with a hit at each position, and the largest |x| there, two panels for each site.

    rules   those whose hits are drawn
    """
    profile = profile.filter(pl.col("rule").is_null() | pl.col("rule").is_in([*rules]))
    sites = profile.select("site", "rule", "threshold").unique(maintain_order=True).rows()
    whole = profile.filter(population="all")
    drawing = Drawing(
        "positions",
        "Positions in the sequence",
        listing(site for site, *_ in sites) if sites else "none",
        "; ".join(_rule(rule, threshold, rules, site) for site, rule, threshold in sites) or "none",
        population_titles(populations),
        "For each site, above: in how many sequences some value of any layer and dimension is a hit by the rule named, "
        "whether or not the rule selects its dimension; below: the largest |x| at the position over all sequences, "
        "layers and dimensions, a hit or not, where it reaches the site's floor (config key detect.floors); smaller "
        "ones are not kept and leave a gap. The diamond marks position 0."
        + (f" No sequence has a hit on {listing(none)}." if (none := _without_hit(whole)) else ""),
    )
    if not sites:
        return drawing.empty("Nothing is drawn: this run has no site, or no position in any population.")
    views = {name: _figure(profile, sites, name) for name in populations}
    return replace(drawing, views=views, data=profile, finding=_finding(profile, sites, populations))


def _finding(profile: pl.DataFrame, sites: Sequence[tuple[str, str | None, float]], populations: Sequence[str]) -> str:
    """Of each site with a rule, at how many positions there are hits."""
    said = []
    for site, rule, _ in sites:
        if rule is None:
            continue
        here = profile.filter(site=site, rule=rule, population=populations[0])
        if here.is_empty():
            continue
        hit = here.filter(pl.col("sequences_hit") > 0).sort("token")
        if len(hit) == 1:
            token, sequences, of = hit.select("token", "sequences_hit", "sequences").row(0)
            where = f"only at position {token} ({number(sequences)} of {count(of, 'sequence')})"
        else:
            where = f"at {number(len(hit)) if len(hit) else 'none'} of {count(len(here), 'position')}"
        said.append(f"{site} ({rule}) {where}")
    return f"Hits {over_population(populations[0])}: {'; '.join(said[:_SAID])}." if said else ""


def _rule(rule: str | None, threshold: float, rules: Mapping[str, HitRule], site: str) -> str:
    if rule is None:
        return f"no rule, |x| >= {number(threshold)} (the floor), on {site}"
    if rules[rule].lists_hits:
        return f"{rule}, {rules[rule].criteria()}, on {site}"
    return f"{rule}, {rules[rule].reaches}, on {site}"


def _without_hit(whole: pl.DataFrame) -> list[str]:
    found = whole.group_by("site", maintain_order=True).agg(pl.col("sequences_hit").sum())
    return found.filter(sequences_hit=0)["site"].to_list()


def _figure(profile: pl.DataFrame, sites: Sequence[tuple[str, str | None, float]], population: str) -> go.Figure:
    figure = panels([110, 150] * len(sites), [population_title(population)])
    length = int(profile["token"].max()) + 1  # type: ignore[arg-type]
    for index, (site, rule, threshold) in enumerate(sites):
        of_site = profile.filter(pl.col("rule").eq_missing(pl.lit(rule, pl.String)), site=site)
        here = of_site.filter(population=population)
        upper, lower = 2 * index + 1, 2 * index + 2
        _add_line(figure, here, "sequences_hit", length, upper)
        _add_line(figure, here, "max_abs", length, lower)
        if here.is_empty():
            say_nothing_here(figure, "no such tokens in this run", upper, 1)
        elif here["max_abs"].is_null().all():
            say_nothing_here(figure, "no |x| reaches the floor", lower, 1)
        _set_counts(figure, int(of_site["sequences"].max()), upper)  # type: ignore[arg-type]
        magnitudes = of_site["max_abs"].drop_nulls().to_list()
        _set_magnitudes(figure, [threshold, *magnitudes], lower)
        if magnitudes:
            add_threshold(figure, threshold, math.log10(threshold), lower)
        figure.update_yaxes(title_text=f"{label(site)}<br>sequences<br>with a hit", row=upper, col=1)
        figure.update_yaxes(title_text=f"{label(site)}<br>largest |x|<br>(activation)", row=lower, col=1)
    figure.update_xaxes(range=[-0.03 * length - 0.5, length - 0.5])
    figure.update_xaxes(title_text=_POSITION_AXIS, row=2 * len(sites))
    figure.update_layout(margin={"l": 98, "r": 36})
    add_legend_entry(figure, "position 0", marker=_FIRST)
    return figure


def _add_line(figure: go.Figure, here: pl.DataFrame, name: str, length: int, row: int) -> None:
    """A bar for each count, a broken line for magnitudes; position 0 stands out."""
    values = dict(zip(here["token"].to_list(), here[name].to_list(), strict=True))
    of = dict(zip(here["token"].to_list(), here["sequences"].to_list(), strict=True))
    over = [values.get(position) for position in range(length)]
    counts = name == "sequences_hit"
    figure.add_scatter(
        x=list(range(length)),
        y=[_place(value) if counts and value is not None else value for value in over],
        customdata=[(number(value), count(of.get(position, 0), "sequence")) for position, value in enumerate(over)],
        hovertemplate="position %{x}: %{customdata[0]}"
        + (" of %{customdata[1]}" if counts else "")
        + "<extra></extra>",
        mode="lines" if counts else "lines+markers",
        line={"color": BLUE, "width": 1.4, **({"shape": "hvh"} if counts else {})},
        **({"fill": "tozeroy", "fillcolor": "rgba(0,114,178,0.25)"} if counts else {"marker": {"size": 3.5}}),
        showlegend=False,
        row=row,
        col=1,
    )
    if over[0] is not None:
        figure.add_scatter(
            x=[0], y=[_place(over[0]) if counts else over[0]], mode="markers", marker=_FIRST, cliponaxis=False,
            hoverinfo="skip", showlegend=False, row=row, col=1,
        )  # fmt: skip
        figure.add_annotation(
            text=number(over[0]), x=0, y=_place(over[0]) if counts else math.log10(over[0]), xanchor="left", xshift=9,
            showarrow=False, bgcolor="white", borderpad=1, font={"size": 11}, row=row, col=1,
        )  # fmt: skip


def _place(sequences: float) -> float:
    """Where a count stands: logarithmic, and 0 has a place."""
    return math.log10(1 + sequences)


def _set_counts(figure: go.Figure, most: int, row: int) -> None:
    steps = [0, *(step * 10**k for k in range(8) for step in ((1, 3) if most < 1000 else (1,)))]
    ticks = [step for step in steps if step < 0.7 * most] + [most]
    figure.update_yaxes(
        range=[-0.04 * _place(most), 1.12 * _place(most)],
        tickvals=[*map(_place, ticks)],
        ticktext=[f"{tick:,}" for tick in ticks],
        row=row,
    )


def _set_magnitudes(figure: go.Figure, values: Sequence[float], row: int) -> None:
    low, high = 0.8 * min(values), 1.25 * max(values)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    steps = (1, 2, 5) if high < 100 * low else (1,)
    ticks = [value for k in exponents for step in steps if low <= (value := float(f"{step}e{k}")) <= high]
    figure.update_yaxes(
        type="log",
        range=[math.log10(low), math.log10(high)],
        tickvals=ticks[:: 1 + len(ticks) // 7],
        ticktext=[number(value) for value in ticks[:: 1 + len(ticks) // 7]],
        row=row,
    )
