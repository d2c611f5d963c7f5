"""The figures of a quantized model's loss: by scheme and remedy, with some inputs kept, and which signals rank them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Drawing,
    add_legend_entry,
    label,
    panels,
)
from outlier_features.files.quantization_columns import EXACT_DIMS, EXACT_RANDOM, NONE
from outlier_features.summary.quantization_loss_facts import loss_sample, remedy_name, rise
from outlier_features.wording import count, number

Part = Mapping[str, Any]
_ROW = 24  # pixels
_COLOURS = {NONE: INK, EXACT_DIMS: VERMILLION, EXACT_RANDOM: GREY}
_LINES = ((VERMILLION, "solid"), (BLUE, "dash"), (ORANGE, "dot"), (GREEN, "dashdot"), (PURPLE, "longdash"),
          (SKY, "solid"), (INK, "dot"))  # fmt: skip


def quantization_loss_figures(losses: pl.DataFrame, signals: pl.DataFrame, results: Part) -> list[Drawing]:
    """results   `quantization_losses` of summary.json"""
    return [_loss(results), _kept(losses, results), _signals(signals, results)]


def _loss(results: Part) -> Drawing:
    base, *effects = results["effects"]
    finite = [row for row in effects if row["perplexity"] is not None and row["nll_change"] is not None]
    drawing = Drawing(
        "quantization-loss",
        "What rounding costs the whole model",
        "what each linear layer of the blocks reads",
        "each scheme, without and with remedies",
        "predicted tokens of the sample",
        f"Perplexity on {loss_sample(results)} with input and weight of all linear layers rounded. Dashed: the model "
        "as it is. Bars: 95 % intervals of the change over resampled sequences. Grey: as many random dims left exact "
        "as are selected, each draw by itself. The last bit of a sum decides how a value at a tie is rounded, so on "
        "another machine small differences are others (docs/definitions.md).",
        min_width=640,
    )
    if not finite or base["perplexity"] is None:
        return drawing.empty("Nothing is drawn: no loss of the quantized model is finite.")
    names = list(dict.fromkeys(map(_row_name, finite)))
    figure = panels([_ROW * len(names) + 12], [""])
    for row in finite:
        _add_loss(figure, row, base["perplexity"], names.index(_row_name(row)))
    figure.add_vline(x=base["perplexity"], line={"color": INK, "dash": "dash", "width": 1.2})
    ends = (row[end] for row in finite for end in ("low", "high") if row[end] is not None)
    reached = (base["perplexity"] * math.exp(min(end, 700)) for end in ends)
    values = [base["perplexity"], *(row["perplexity"] for row in finite), *reached]
    figure.update_xaxes(**_axis(values), title_text="perplexity")
    figure.update_yaxes(tickvals=[*range(len(names))], ticktext=names, range=[len(names) - 0.5, -0.5])
    figure.update_layout(margin_l=270)
    for remedy, name in ((NONE, "no remedy"), (EXACT_DIMS, "selected dims"), (EXACT_RANDOM, "random dims")):
        if any(row["remedy"] == remedy for row in finite):
            add_legend_entry(figure, name, marker={"color": _COLOURS[remedy], "size": 9, "symbol": _symbol(remedy)})
    data = pl.DataFrame(results["effects"], infer_schema_length=None)
    return replace(drawing, views={"all": figure}, data=data, finding=f"{rise(results)}.")


def _row_name(row: Part) -> str:
    return label(row["scheme"] if row["remedy"] == NONE else f"{row['scheme']}, {remedy_name(row)}")


def _symbol(remedy: str) -> str:
    return {NONE: "square", EXACT_DIMS: "diamond", EXACT_RANDOM: "circle-open"}.get(remedy, "circle")


def _add_loss(figure: go.Figure, row: Part, base: float, place: int) -> None:
    ends, setting = None, f"<br>{label(row['setting'])}" if row["setting"] else ""
    if row["low"] is not None and row["remedy"] != EXACT_RANDOM:
        low, high = (base * math.exp(min(row[end], 700)) for end in ("low", "high"))
        ends = {"type": "data", "symmetric": False, "array": [max(high - row["perplexity"], 0)],
                "arrayminus": [max(row["perplexity"] - low, 0)], "thickness": 1.8, "width": 3}  # fmt: skip
    figure.add_scatter(
        x=[row["perplexity"]], y=[place], error_x=ends, mode="markers", showlegend=False, row=1, col=1,
        marker={"color": _COLOURS.get(row["remedy"], BLUE), "size": 9, "symbol": _symbol(row["remedy"])},
        hovertemplate=f"{_row_name(row)}{setting}<br>perplexity {number(row['perplexity'])}<br>"
        f"loss {row['nll_change']:+.3g} nats per token<extra></extra>",
    )  # fmt: skip


def _axis(values: Sequence[float]) -> dict[str, Any]:
    logs = [*map(math.log10, values)]
    low, high = min(logs), max(logs)
    beside = max(0.06 * (high - low), 0.004)
    if high - low < 0.7:  # less than a factor of five: plotly's own ticks are plain numbers there
        return {"type": "linear", "range": [10 ** (low - beside), 10 ** (high + beside)]}
    ticks = [10.0**k for k in range(math.floor(low), math.ceil(high) + 1)]
    if len(ticks) < 4:
        ticks = [digit * tick for tick in ticks for digit in (1, 2, 5)]
    return {"type": "log", "range": [low - beside, high + beside], "tickvals": ticks, "ticktext": [*map(number, ticks)]}


def _kept(losses: pl.DataFrame, results: Part) -> Drawing:
    scheme = results["loss_scheme"]
    budget = results["budget"]
    drawing = Drawing(
        "quantization-kept",
        "With some inputs kept in 16 bits",
        "what each linear layer of the blocks reads",
        f"rounded by {scheme}",
        "predicted tokens of the sample",
        f"Perplexity on {loss_sample(results)} with all linear layers rounded but those that read the first inputs of "
        "an order, which are left as they are: by what each costs alone (kl, nll_change), by signals that are known "
        "without such passes, and by chance. Layers that read the same tensor are kept together. Dashed: the model as "
        f"it is; dotted: the budget, {number(100 * budget)} % more.",
        min_width=560,
    )
    base = results["effects"][0]["perplexity"]
    kept = losses.filter(pl.col("what").str.starts_with("kept:"), pl.col("perplexity").is_not_null())
    parts = pl.col("what").str.split(":")
    kept = kept.with_columns(order=parts.list.get(1), kept=parts.list.get(2).cast(pl.UInt32))
    if kept.is_empty() or base is None:
        return drawing.empty("Nothing is drawn: no inputs were kept, or no loss is finite.")
    kept = kept.select("order", "kept", "modules", "perplexity", "nll_change", "low", "high", "kl").sort("kept")
    whole = next(
        (row["perplexity"] for row in results["effects"] if row["scheme"] == scheme and row["remedy"] == NONE), None
    )
    numbers = kept["kept"].unique().sort().to_list()
    figure = panels([300], [""])
    for order, (colour, dash) in zip(kept["order"].unique(maintain_order=True), _LINES, strict=False):
        own = kept.filter(order=order)
        start = [] if whole is None else [(0, whole)]
        places = [(0, whole)] * len(start) + [*own.select("kept", "perplexity").iter_rows()]
        at = {0: 0, **{n: place for place, n in enumerate(numbers, start=1)}}
        figure.add_scatter(
            x=[at[n] for n, _ in places], y=[value for _, value in places], name=label(order), mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 1.8}, marker={"size": 6},
            customdata=[n for n, _ in places],
            hovertemplate=f"{label(order)}: %{{customdata}} kept<br>perplexity %{{y:.5g}}<extra></extra>", row=1, col=1,
        )  # fmt: skip
    figure.add_hline(y=base, line={"color": INK, "dash": "dash", "width": 1.2})
    figure.add_hline(y=base * (1 + budget), line={"color": VERMILLION, "dash": "dot", "width": 1.4})
    figure.update_xaxes(
        tickvals=[*range(len(numbers) + 1)], ticktext=["0", *map(str, numbers)], title_text="inputs kept in 16 bits"
    )
    figure.update_yaxes(**_axis([base, base * (1 + budget), *kept["perplexity"], *([whole] if whole else [])]))
    figure.update_yaxes(title_text="perplexity")
    figure.update_layout(margin_t=84)
    return replace(drawing, views={"all": figure}, data=kept, finding=_needed(results, scheme, budget))


def _needed(results: Part, scheme: str, budget: float) -> str:
    """How few inputs each order has to keep."""
    known = [row for row in results["signals"] if row["kept"] is not None]
    if not known:
        return ""
    best = min(known, key=lambda row: row["kept"])
    chance = next((row for row in known if row["order"] == "random"), None)
    text = (
        f"So that {scheme} costs at most {number(100 * budget)} % of perplexity, {count(best['kept'], 'input')} must "
        f"be kept in the order of {best['order']}"
    )
    return f"{text}, {chance['kept']:,} in a random one." if chance and chance is not best else f"{text}."


def _signals(signals: pl.DataFrame, results: Part) -> Drawing:
    known = signals.drop_nulls("spearman_kl").filter(~pl.col("order").is_in(["kl", "nll_change", "random"]))
    drawing = Drawing(
        "quantization-signals",
        "Which signals foretell what an input costs",
        "what each linear layer of the blocks reads",
        f"rounded by {results['loss_scheme']}",
        "predicted tokens of the sample",
        "Spearman's rank correlation over the inputs between a signal that is known without passes of a quantized "
        "model and what the input costs when it alone is rounded: the divergence of predictions (kl) and the change "
        "of the loss, which on a small sample is mostly chance.",
        min_width=480,
    )
    if known.is_empty():
        return drawing.empty("Nothing is drawn: no signal was compared.")
    known = known.sort("spearman_kl", descending=True)
    names = known["order"].to_list()
    figure = panels([2 * _ROW * len(names)], [""])
    for column, name, colour in (("spearman_kl", "with kl", BLUE), ("spearman", "with the change of the loss", ORANGE)):
        figure.add_bar(
            x=known[column].to_list(), y=[*range(len(names))], orientation="h", name=name, marker={"color": colour},
            hovertemplate=f"%{{customdata}}<br>{name}: %{{x:.3f}}<extra></extra>", customdata=names, row=1, col=1,
        )  # fmt: skip
    figure.update_xaxes(range=[min(-0.05, *known["spearman_kl"], *known["spearman"].drop_nulls()) - 0.02, 1],
                        title_text="rank correlation (Spearman)", zeroline=True, zerolinecolor=INK)  # fmt: skip
    figure.update_yaxes(tickvals=[*range(len(names))], ticktext=[*map(label, names)], range=[len(names) - 0.5, -0.5])
    figure.update_layout(barmode="group", bargap=0.3, margin_l=170)
    best, worst = known.row(0, named=True), known.row(-1, named=True)
    finding = f"Of the signals {best['order']} ranks {count(best['inputs'], 'input')} best, {best['spearman_kl']:.2f}"
    finding += f"; worst does {worst['order']}, {worst['spearman_kl']:.2f}." if len(known) > 1 else "."
    return replace(drawing, views={"all": figure}, data=known, finding=finding)
