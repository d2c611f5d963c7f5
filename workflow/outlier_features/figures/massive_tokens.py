"""The figure of the tokens that carry massive activations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.style import (
    BLUE,
    VERMILLION,
    Drawing,
    capped,
    panels,
    quoted_label,
    say_nothing_here,
)
from outlier_features.populations import population_title, population_titles
from outlier_features.visible_text import quoted, visible_start
from outlier_features.wording import count, listing, number, percent, rules_named

MOST = 20
_TEXT = 18  # characters of a token
_KINDS = (
    (False, "other token", BLUE, ""),
    (True, "first position or special token", VERMILLION, "/"),
)


def massive_tokens(massive: pl.DataFrame, sites: Mapping[str, Sequence[str]], populations: Sequence[str]) -> Drawing:
    """Massive activations of each token text: how many, and the largest; position 0 stands by position where it bears
    several texts, and so does a token without text.

    sites   of this run that each rule which lists its hits was applied to
    """
    applied = {rule: names for rule, names in sites.items() if names}
    massive = massive.filter(pl.col("rule").is_in([*applied]))
    found = {name: tokens_of(massive, name) for name in populations}
    total = max((len(rows) for rows in found.values()), default=0)
    drawing = Drawing(
        "massive-tokens",
        "Tokens with massive activations",
        listing(dict.fromkeys(name for names in applied.values() for name in names)) if applied else "none",
        listing(applied) if applied else "none",
        population_titles(populations),
        "Left: massive activations, each a value (sequence, layer, position, dimension), at tokens of this text. "
        "Right: the largest |x| among them. A text that occurs both at a first position and elsewhere has a bar for "
        "each; position 0 has one for all its texts. Tokens are cut to 18 characters; a token without text is named by "
        "its position." + capped(total, min(total, MOST), "token text"),
    )
    if not applied:
        return drawing.empty(
            "Nothing is drawn: a rule for massive activations was not applied, as its site is not there."
        )
    if not total:
        return drawing.empty("Nothing is drawn: there are no massive activations in any population.")
    shown = {name: rows.head(MOST) for name, rows in found.items()}
    drawn = pl.concat([rows.select(pl.lit(name).alias("population"), pl.all()) for name, rows in shown.items()])
    activations, size = drawn.select(pl.col("activations").max(), pl.col("max_abs").max()).row(0)
    return replace(
        drawing,
        views={name: _figure(rows, name, size, activations) for name, rows in shown.items()},
        data=drawn,
        finding=_finding(massive.filter(f"massive_{populations[0]}"), found[populations[0]], applied),
    )


def _finding(massive: pl.DataFrame, tokens: pl.DataFrame, applied: Mapping[str, Sequence[str]]) -> str:
    """Whether it is the position or the token that has them; `tokens` of the population of `massive`."""
    total, first, apart = len(massive), int((massive["token"] == 0).sum()), int(massive["excluded"].sum())
    if not total:
        return ""
    sites = dict.fromkeys(name for names in applied.values() for name in names)
    of_all = f"{count(total, 'massive activation')} ({rules_named([*applied])}, {listing(sites)})"
    every = f"All {of_all} lie" if total > 1 else f"The {of_all} lies"
    if first == total:
        texts = massive["token_text"].n_unique()
        whatever = f", whatever its token ({count(texts, 'text')})" if texts > 1 else ""
        return f"{every} at position 0, in {count(massive['sequence'].n_unique(), 'sequence')}{whatever}."
    named = tokens if apart == total else tokens.filter(~pl.col("excluded"))
    text, position, activations = named.select("token_text", "position", "activations").sort("activations").row(-1)
    name = _name(text, position, 1) if text is None else quoted(visible_start(text, _TEXT))
    most = f"most at {name} ({number(activations)})"
    if apart == total:
        return f"{every} at first positions or special tokens, {most}."
    if not apart:
        return f"Of {of_all} none lies at a first position or special token; {most}."
    return (
        f"Of {of_all}, {percent(apart / total)} lie at first positions or special tokens; of the other "
        f"{number(total - apart)}, {most}."
    )


def tokens_of(massive: pl.DataFrame, population: str) -> pl.DataFrame:
    """A row for each token text of a population, first and special ones apart, the largest first.

    Position 0 is one row where it bears several texts: which is not what matters there.
    """
    here = massive.filter(f"massive_{population}")
    first = pl.col("token") == 0
    several = here.filter(first)["token_text"].n_unique() > 1
    return (
        here.with_columns(text=pl.col("token_text"), token_text=pl.when(~(first & pl.lit(several))).then("token_text"))
        .with_columns(position=pl.when(pl.col("token_text").is_null()).then("token"))
        .group_by("token_text", "position", "excluded", maintain_order=True)
        .agg(
            texts=pl.col("text").n_unique(),
            activations=pl.len(),
            positions=pl.struct("sequence", "token").n_unique(),
            dims=pl.col("dim").n_unique(),
            max_abs=pl.col("value").abs().max(),
        )
        .sort(["max_abs", "token_text", "position"], descending=[True, False, False])
    )


def _figure(rows: pl.DataFrame, population: str, size: float, activations: int) -> go.Figure:
    """`size`, `activations`: the largest of both views, for one scale."""
    height = max(90, 20 * len(rows))
    figure = panels([height], [population_title(population), ""], horizontal_spacing=0.1)
    figure.update_layout(margin_l=150, bargap=0.25)
    if rows.is_empty():
        for column in (1, 2):
            say_nothing_here(figure, "no massive activations in this population", 1, column)
    for excluded, _, colour, pattern in _KINDS:
        here = rows.with_row_index("row").filter(excluded=excluded)
        for column, name in ((1, "activations"), (2, "max_abs")):
            figure.add_bar(
                x=here[name].to_list(), y=here["row"].to_list(), orientation="h", width=0.7, showlegend=False,
                marker=_marker(colour, pattern),
                customdata=[
                    (number(value), count(positions, "position"), count(dims, "dimension"))
                    for value, positions, dims in here.select(name, "positions", "dims").rows()
                ],
                hovertemplate="%{customdata[0]} (at %{customdata[1]}, in %{customdata[2]})<extra></extra>",
                row=1, col=column,
            )  # fmt: skip
    figure.update_yaxes(
        range=[max(len(rows), 1) - 0.5, -0.5], tickvals=list(range(len(rows))), showgrid=False,
        ticktext=[_name(*row) for row in rows.select("token_text", "position", "texts").rows()],
    )  # fmt: skip
    for column, title, largest in ((1, "activations", activations), (2, "largest |x|", size)):
        figure.update_xaxes(title_text=title, range=[0, 1.06 * largest], nticks=4, tickformat=",", row=1, col=column)
    for _, title, colour, pattern in _KINDS:
        figure.add_bar(x=[None], y=[None], orientation="h", name=title, marker=_marker(colour, pattern), row=1, col=1)
    return figure


def _marker(colour: str, pattern: str) -> dict[str, Any]:
    return {"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay", "fgcolor": "white", "size": 7}}


def _name(text: str | None, position: int | None, texts: int) -> str:
    if text is None:
        return f"position {position}" + (f", {count(texts, 'text')}" if texts > 1 else "")
    return quoted_label(text, _TEXT)
