"""The figure of the signs of selected dims: how many hits are positive, and from where to where x reaches."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go
import polars as pl

from outlier_features.dim_marks import dim_mark
from outlier_features.figures.dimension_map import MAX_ROWS
from outlier_features.figures.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    Drawing,
    add_legend_entry,
    capped,
    decades,
    label,
    panels,
    say_nothing_here,
    set_dim_rows,
)
from outlier_features.largest import largest_of_each
from outlier_features.populations import over_population, population_title, population_titles
from outlier_features.wording import count, listing, number, percent

_SIGNS = (
    ("negative", -1, ORANGE, "/", "triangle-left-open"),
    ("positive", 1, BLUE, "", "triangle-right"),
)
_ENDS = ("smallest", "largest")
_DECADES = 4  # at most, to each side of 0
_TICKS_APART = 0.15  # of half the axis: their labels do not meet on a narrow screen
_ONE_SIDED = {"symbol": "star", "size": 11, "color": INK}


@dataclass(frozen=True)
class _Part:
    """A rule, the dims it selects in some population that are drawn, and the sites whose extremes are known."""

    rule: str
    shown: list[int]
    selected: int
    sites: list[str]


@dataclass(frozen=True)
class _Scale:
    """A signed axis: linear within `unit` of 0, logarithmic beyond, and as long to both sides."""

    unit: float
    furthest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "_Scale":
        low, high = decades([abs(value) for value in values if value] or [1.0])
        return cls(10.0 ** max(low, high - _DECADES), max(map(abs, values), default=1.0) or 1.0)

    def place(self, value: float) -> float:
        return math.asinh(value / self.unit)

    def put(self, figure: go.Figure, row: int) -> None:
        steps = (1, 2, 5) if self.furthest < 30 * self.unit else (1,)
        sizes = [step * self.unit * 10**k for k in range(_DECADES + 1) for step in steps]
        end = 1.14 * self.place(self.furthest)
        kept = [math.inf]
        for size in sorted((size for size in sizes if size <= 1.01 * self.furthest), reverse=True):
            if min(self.place(size), self.place(kept[-1]) - self.place(size)) >= _TICKS_APART * end:
                kept.append(size)
        ticks = [*(-size for size in kept[1:]), 0.0, *kept[:0:-1]]
        figure.update_xaxes(
            range=[-end, end], tickvals=[*map(self.place, ticks)],
            ticktext=[number(int(tick) if tick.is_integer() else tick).replace("-", "−") for tick in ticks],
            title_text="smallest and largest x (activation)", row=row, col=1,
        )  # fmt: skip
        figure.add_vline(x=0, line={"color": INK, "width": 1}, row=row, col=1)


def signs(
    dims: pl.DataFrame, emergence: pl.DataFrame, sites: Mapping[str, Sequence[str]], populations: Sequence[str]
) -> Drawing:
    """Share of positive and negative hits of the dims that a rule selects; their smallest and largest x at each site.

    sites   of this run that each rule was applied to
    """
    applied = {rule: names for rule, names in sites.items() if names}
    parts = [part for rule, names in applied.items() if (part := _part(rule, names, dims, emergence)).shown]
    drawing = Drawing(
        "signs",
        "Sign and one-sidedness",
        "; ".join(f"{rule} on {' + '.join(names)}" for rule, names in applied.items()) or "none",
        listing(applied) if applied else "none",
        population_titles(populations),
        "For each dimension that a rule selects, the largest |x| first. Bars: the shares of its hits by that rule that "
        "are negative (left) and positive (right). Star: one-sided, one sign holds at least 95 % of the hits. Pale: "
        "the rule does not select it among these tokens. Triangles, for each site: the smallest and the largest x over "
        "all sequences, positions and layers, a hit or not, on an axis that is linear about 0 and logarithmic beyond "
        "(inverse hyperbolic sine); where one lies further from 0, a symmetric quantization wastes the difference."
        + "".join(capped(part.selected, len(part.shown), f"{part.rule} dimension") for part in parts),
    )
    if not parts:
        return drawing.empty("Nothing is drawn: no dimension is selected by a rule in any population.")
    rows = {part.rule: _bars(dims, part) for part in parts}
    ranges = {part.rule: _ranges(emergence, part) for part in parts}
    views = {population: _figure(parts, rows, ranges, population) for population in populations}
    data = [rows[rule].join(ranges[rule], on=("population", "dim"), how="left") for rule in rows]
    finding = _finding(dims, ranges, applied, populations)
    return replace(drawing, views=views, data=pl.concat(data), finding=finding)


def _finding(
    dims: pl.DataFrame, ranges: Mapping[str, pl.DataFrame], rules: Iterable[str], populations: Sequence[str]
) -> str:
    """How many of each rule's dims are one-sided, and the dim that reaches furthest, of the first population that has
    a selected one."""
    for population in populations:
        selected = dims.filter(pl.col("selected"), pl.col("rule").is_in([*rules]), population=population)
        if selected.is_empty():
            continue
        by_rule = selected.group_by("rule", maintain_order=True).agg("one_sided")
        sided = listing(
            f"{sum(flags)} of {count(len(flags), 'dimension')} by {rule}" for rule, flags in by_rule.iter_rows()
        )
        text = f"One-sided {over_population(population)}: {sided}"
        reach = pl.max_horizontal(pl.col("low").abs(), pl.col("high").abs())
        known = pl.concat([ranges[rule] for rule in by_rule["rule"]]).filter(population=population)
        known = known.filter(pl.col("dim").is_in(selected["dim"].implode())).sort(reach)
        if known.is_empty():
            return f"{text}."
        row = known.row(-1, named=True)
        low, high = number(row["low"]), number(row["high"])
        return f"{text}; dimension {dim_mark(row['dim'])} reaches from {low} to {high} on {row['site']}."
    return ""


def _part(rule: str, sites: Sequence[str], dims: pl.DataFrame, emergence: pl.DataFrame) -> _Part:
    order = largest_of_each(dims.filter("selected", rule=rule), "max_abs", "dim")["dim"].to_list()
    known = set(emergence["site"].unique())
    return _Part(rule, order[:MAX_ROWS], len(order), [site for site in sites if site in known])


def _bars(dims: pl.DataFrame, part: _Part) -> pl.DataFrame:
    return dims.filter(pl.col("rule") == part.rule, pl.col("dim").is_in(part.shown)).select(
        "population", "rule", "sites", "dim", "selected", "occurrences", "positive", "negative", "one_sided"
    )


def _ranges(emergence: pl.DataFrame, part: _Part) -> pl.DataFrame:
    """Smallest and largest x of the dims over the layers of each site; none where a population has no positions."""
    found = emergence.filter(
        pl.col("dim").is_in(part.shown), pl.col("site").is_in(part.sites), pl.col("low").is_finite()
    )
    return (
        found.group_by("population", "dim", "site")
        .agg(pl.col("low").min(), pl.col("high").max())
        .sort("population", "dim", "site")
    )


def _figure(
    parts: Sequence[_Part], bars: Mapping[str, pl.DataFrame], ranges: Mapping[str, pl.DataFrame], population: str
) -> go.Figure:
    """`bars` and `ranges` by rule, of all populations, whose axes are alike."""
    heights = [max(76, 22 * len(part.shown) + 16) for part in parts for _ in (None, *part.sites)]
    figure = panels(heights, [population_title(population)], gap=58, shared_xaxes=False)
    row = 0
    for part in parts:
        row += 1
        _add_bars(figure, bars[part.rule].filter(population=population), part, row)
        for site in part.sites:
            row += 1
            here = ranges[part.rule].filter(site=site)
            scale = _Scale.of([*here["low"], *here["high"]])
            _add_ranges(figure, here.filter(population=population), part, scale, row)
            scale.put(figure, row)
            figure.update_yaxes(title_text=f"{label(site)}<br>dimension", row=row, col=1)
    figure.update_layout(barmode="overlay", bargap=0.25)
    for end, (*_, colour, _, symbol) in zip(_ENDS, _SIGNS, strict=True):
        add_legend_entry(figure, f"{end} x", marker={"symbol": symbol, "size": 11, "color": colour})
    add_legend_entry(figure, "one-sided", marker=_ONE_SIDED)
    return figure


def _add_bars(figure: go.Figure, rows: pl.DataFrame, part: _Part, row: int) -> None:
    shares = [-1.0, -0.5, 0.0, 0.5, 1.0]
    figure.update_xaxes(
        range=[-1.14, 1.14], tickvals=shares, ticktext=[percent(abs(share)) for share in shares],
        title_text=f"share of its hits by rule {label(part.rule)}: negative | positive", row=row, col=1,
    )  # fmt: skip
    figure.add_vline(x=0, line={"color": INK, "width": 1}, row=row, col=1)
    figure.update_yaxes(title_text=f"rule {label(part.rule)}<br>dimension", row=row, col=1)
    set_dim_rows(figure, part.shown, row=row)
    if rows.is_empty():
        say_nothing_here(figure, "no such dimension has a hit", row, 1)
        return
    lines = rows.to_dicts()
    for name, side, colour, shape, _ in _SIGNS:
        larger = [line[name] * 2 >= line["occurrences"] + (side < 0) for line in lines]
        figure.add_bar(
            x=[side * line[name] / line["occurrences"] for line in lines],
            y=[part.shown.index(line["dim"]) for line in lines],
            orientation="h",
            width=0.7,
            text=[count(line["occurrences"], "hit") if most else "" for line, most in zip(lines, larger, strict=True)],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            textfont={"color": INK, "size": 11},
            customdata=[(line["dim"], line[name], line["occurrences"]) for line in lines],
            hovertemplate=f"dimension %{{customdata[0]}}: %{{customdata[1]:,}} of %{{customdata[2]:,}} hits are {name}"
            "<extra></extra>",
            marker={
                "color": colour,
                "opacity": [0.55 if line["selected"] else 0.2 for line in lines],
                "line": {"color": INK, "width": 0.6},
                "pattern": {"shape": shape, "fgcolor": INK, "bgcolor": colour, "size": 6, "solidity": 0.12},
            },
            showlegend=False,
            row=row,
            col=1,
        )
    sided = [line for line in lines if line["one_sided"]]
    figure.add_scatter(
        x=[1.08 if line["positive"] > line["negative"] else -1.08 for line in sided],
        y=[part.shown.index(line["dim"]) for line in sided],
        mode="markers", marker=_ONE_SIDED, hoverinfo="skip", showlegend=False, row=row, col=1,
    )  # fmt: skip


def _add_ranges(figure: go.Figure, ranges: pl.DataFrame, part: _Part, scale: _Scale, row: int) -> None:
    set_dim_rows(figure, part.shown, row=row)
    if ranges.is_empty():
        say_nothing_here(figure, "no such tokens in this run", row, 1)
        return
    lines = [(part.shown.index(dim), dim, low, high) for dim, low, high in ranges.select("dim", "low", "high").rows()]
    figure.add_scatter(
        x=[x for *_, low, high in lines for x in (scale.place(low), scale.place(high), None)],
        y=[y for at, *_ in lines for y in (at, at, None)],
        mode="lines", line={"color": GREY, "width": 1.5}, hoverinfo="skip", showlegend=False, row=row, col=1,
    )  # fmt: skip
    for (_, side, colour, _, symbol), end in zip(_SIGNS, _ENDS, strict=True):
        drawn = [(at, dim, high if side > 0 else low) for at, dim, low, high in lines]
        figure.add_scatter(
            x=[scale.place(x) for _, _, x in drawn],
            y=[at for at, *_ in drawn],
            customdata=[(dim, number(x)) for _, dim, x in drawn],
            hovertemplate=f"dimension %{{customdata[0]}}<br>{end} x:  %{{customdata[1]}}<extra></extra>",
            mode="markers",
            marker={"symbol": symbol, "size": 11, "color": colour, "line": {"width": 1.8, "color": colour}},
            showlegend=False,
            row=row,
            col=1,
        )
