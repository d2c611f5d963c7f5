"""The figures of ablations: perplexity without outlier dims, super weights and super experts, beside that without
random ones."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.ablate.ablation_effects import ablation_sample, position_name, target_name
from outlier_features.dim_marks import marked_of
from outlier_features.figures.style import (
    BLUE,
    GREY,
    INK,
    PALE,
    VERMILLION,
    Drawing,
    add_legend_entry,
    decades,
    label,
    panels,
    power,
)
from outlier_features.populations import population_title
from outlier_features.summary.ablation_facts import harm, nothing_to_ablate
from outlier_features.wording import count, in_words, number, percent, span

Part = Mapping[str, Any]
_POSITIONS = ("excluded", "rest", "all")
_MARKERS = {"zero": ("circle", VERMILLION), "mean": ("diamond", BLUE)}
_LANES = {"zero": -0.2, "mean": 0.2}
_LEFT = 250
_IN_LINE = 24  # letters beside which the rule's name has room


def ablation(results: Part) -> Drawing:
    """Perplexity of every variant on a logarithmic axis; a row for each target, a column for each set of positions.

    results   `ablation` of summary.json
    """
    effects = results["effects"][1:]
    drawing = Drawing(
        "ablation",
        "Does it matter?",
        " and ".join(dict.fromkeys(effect["site"] for effect in effects)) or "none",
        " and ".join(dict.fromkeys(effect["rule"] for effect in effects)) or "none",
        population_title("all"),
        f"Perplexity on the {ablation_sample(results)} while values are set to zero, or to their mean in the unchanged "
        "model over the same positions. A thin line reaches from the sequence with the lowest perplexity to that with "
        "the highest. Dashed: the unchanged model; shaded: its range over the sequences. Open grey marks: "
        f"{count(results['seeds'], 'draw')} of as many random dimensions in the same layers, or random weights in the "
        "same matrices, set alike.",
        min_width=900,
    )
    if not effects:
        return drawing.empty(f"Nothing is drawn. {nothing_to_ablate(results)}.")
    figure = _figure(results["effects"][0], effects, results["only_first_excluded"])
    finding = _finding(results["effects"][0], effects, results)
    return replace(drawing, views={"all": figure}, data=_drawn(results["effects"]), finding=finding)


def expert_ablation(results: Part) -> Drawing:
    """The same for a model without its super experts.

    results   `expert_ablation` of summary.json, of a model that has super experts
    """
    base, *effects = results["effects"]
    drawing = Drawing(
        "expert-ablation",
        "Without the super experts",
        effects[0]["site"],
        effects[0]["rule"],
        population_title("all"),
        f"Perplexity on the {ablation_sample(results)} while what experts write is set to zero at every position; the "
        "router chooses as ever. A thin line reaches from the sequence with the lowest perplexity to that with the "
        "highest. Dashed: the unchanged model; shaded: its range over the sequences. Open grey marks: "
        f"{count(results['seeds'], 'draw')} of as many random experts of the same layers, set alike.",
        min_width=600,
    )
    figure = _figure(base, effects, results["only_first_excluded"])
    finding = _finding(base, effects, results)
    return replace(drawing, views={"all": figure}, data=_drawn(results["effects"]), finding=finding)


def _finding(base: Part, effects: Sequence[Part], results: Part) -> str:
    """The target whose zeros do most harm, beside its mean and as many random ones."""
    worst = max((effect for effect in effects if effect["value"] == "zero"), key=harm, default=None)
    if worst is None:
        return ""
    where = position_name(worst["positions"], results["only_first_excluded"])
    same = ("target", "rule", "site", "layers", "dims", "positions")
    said = [f"Zero in {_short(worst)} at {where} takes perplexity from {_rounded(base)} to {_rounded(worst)}"]
    said += [
        f"{'its' if worst['number'] == 1 else 'their'} mean there to {_rounded(effect)}"
        for effect in effects
        if effect["value"] == "mean" and all(effect[name] == worst[name] for name in same)
    ]
    if worst["random"]:
        said.append(f"random ones to {span(draw['perplexity'] for draw in worst['random'])}")
    sample = f"{count(results['tokens'], 'token')} of {count(results['sequences'], 'sequence')}"
    return f"{'; '.join(said)} (the first {sample})."


def _short(effect: Part) -> str:
    """What was set to zero, in few words however much it is."""
    if effect["target"] == "dims" and effect["number"] > 2:
        return f"the {count(effect['number'], 'dimension')} of rule {effect['rule']}"
    return marked_of(target_name(effect))


def _rounded(effect: Part) -> str:
    return "a number that is not finite" if effect["perplexity"] is None else in_words(effect["perplexity"])


def _drawn(effects: Sequence[Part]) -> pl.DataFrame:
    """A row for each variant: the unchanged model, the targets, and each target's random draws after it."""
    variants = [variant for effect in effects for variant in (effect, *effect["random"])]
    return pl.DataFrame([{key: value for key, value in one.items() if not isinstance(value, list)} for one in variants],
                        infer_schema_length=None)  # fmt: skip


def _figure(base: Part, effects: Sequence[Part], only_first: bool) -> go.Figure:
    names = list(dict.fromkeys(_name(effect) for effect in effects))
    columns = [positions for positions in _POSITIONS if any(effect["positions"] == positions for effect in effects)]
    titles = [f"set at {position_name(positions, only_first)}" for positions in columns]
    figure = panels([54 * len(names) + 20], columns=titles)
    for column in range(1, len(columns) + 1):
        _add_baseline(figure, base, column)
    for effect in effects:
        row, column = names.index(_name(effect)), columns.index(effect["positions"]) + 1
        _add_points(figure, effect["random"], row, column, random=True)
        _add_points(figure, [effect], row, column, random=False)
    every = [base, *effects, *(draw for effect in effects for draw in effect["random"])]
    values = [value for row in every for value in (row["perplexity"], *row["sequences"]) if value is not None]
    low, high = decades(values)
    step = math.ceil((high - low) / 4)
    ticks = [*range(low, high + 1, step)]
    beside = max(0.1, 0.07 * (high - low))  # room for half a label, which would reach the next panel's
    figure.update_xaxes(type="log", range=[low - beside, high + beside], tickvals=[10.0**tick for tick in ticks])
    figure.update_xaxes(ticktext=[power(tick) for tick in ticks], title_text="perplexity")
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.5, -0.5])
    figure.update_layout(margin_l=_LEFT)
    for value, (symbol, colour) in _MARKERS.items():
        if any(effect["value"] == value for effect in effects):
            add_legend_entry(figure, f"set to {value}", marker={"symbol": symbol, "size": 10, "color": colour})
    if any(effect["random"] for effect in effects):
        style = {"symbol": "circle-open", "size": 8, "color": GREY, "line": {"width": 1.5}}
        add_legend_entry(figure, "random, treated alike", marker=style)
    return figure


def _name(effect: Part) -> str:
    """A row's label: what, and by which rule, on two lines."""
    name = target_name(effect)
    for place in (" on ", " in every ", " of layer"):
        if place in name:
            what, where = name.split(place, 1)
            gap = "<br>" if len(what) > _IN_LINE else " "
            return f"{label(what)}{gap}(rule {label(effect['rule'])})<br>{label(place.strip())} {label(where.strip())}"
    return f"{label(name)}<br>(rule {label(effect['rule'])})"


def _add_baseline(figure: go.Figure, base: Part, column: int) -> None:
    finite = [value for value in base["sequences"] if value is not None]
    place: dict[str, Any] = {"row": 1, "col": column, "exclude_empty_subplots": False}
    if finite:
        figure.add_vrect(x0=min(finite), x1=max(finite), fillcolor=PALE, line_width=0, layer="below", **place)
    if base["perplexity"] is not None:
        figure.add_vline(
            x=base["perplexity"], line={"color": INK, "dash": "dash", "width": 1.2}, layer="below", **place
        )


def _add_points(figure: go.Figure, rows: Sequence[Part], place: int, column: int, random: bool) -> None:
    rows = [row for row in rows if row["perplexity"] is not None]
    if not rows:
        return
    symbol, colour = _MARKERS[rows[0]["value"]]
    middle = place + _LANES[rows[0]["value"]]
    # Random draws lie close to each other: each has a lane of its own.
    lanes = [middle + 0.11 * (n - (len(rows) - 1) / 2) for n in range(len(rows))] if random else [middle]
    ends = [[value for value in row["sequences"] if value is not None] for row in rows]
    marker: dict[str, Any] = {"symbol": symbol, "size": 10, "color": colour, "line": {"color": INK, "width": 1}}
    if random:
        marker = {"symbol": f"{symbol}-open", "size": 6, "color": GREY, "line": {"width": 1.5}}
    perplexities = [row["perplexity"] for row in rows]
    error = {
        "type": "data", "symmetric": False, "thickness": 0 if random else 2, "width": 0, "color": colour,
        "array": [max(end, default=x) - x for end, x in zip(ends, perplexities, strict=True)],
        "arrayminus": [x - min(end, default=x) for end, x in zip(ends, perplexities, strict=True)],
    }  # fmt: skip
    figure.add_scatter(
        x=perplexities,
        y=lanes,
        mode="markers",
        marker=marker,
        error_x=error,
        customdata=[(_hover(row), number(row["bits_per_byte"]), percent(row["top1_probability"])) for row in rows],
        hovertemplate="%{customdata[0]}<br>perplexity %{x:,.4g}<br>%{customdata[1]} bits per byte<br>"
        "mean top-1 probability %{customdata[2]}<extra></extra>",
        showlegend=False,
        row=1,
        col=column,
    )


def _hover(row: Part) -> str:
    seed = f", random draw {row['seed']}" if row["target"] == "random" else ""
    return f"{label(target_name(row))}{seed}<br>set to {row['value']}"
