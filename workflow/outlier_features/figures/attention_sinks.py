"""The figure of the attention sinks over the layers, with the massive activations that they read."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go
import polars as pl

from outlier_features.attention.kept_patterns import first_key_by_layer
from outlier_features.attention.sinks_schema import SinkSample
from outlier_features.dim_marks import dim_mark
from outlier_features.figures.dimension_map import choosing
from outlier_features.figures.style import (
    PALE,
    VERMILLION,
    Drawing,
    decades,
    log_axis,
    panels,
    say_nothing_here,
    set_layer_axis,
    set_panel_dim,
)
from outlier_features.largest import largest_of_each
from outlier_features.populations import population_title
from outlier_features.wording import count, layers, number, percent, rules_named

KEYS_SHOWN = 16


def attention_sinks(
    sinks: pl.DataFrame,
    emergence: pl.DataFrame,
    dims: pl.DataFrame,
    rules: Collection[str],
    sample: SinkSample,
) -> Drawing:
    """Sink rates by layer and head (of position 0) and by layer and key, over max |x| of the largest massive dim.

    rules   those that list massive activations
    """
    drawing = Drawing(
        "attention-sinks",
        "Attention sinks and massive activations",
        "pattern for the sinks, resid_post for |x|",
        f"attention sink: alpha > {number(sample.threshold)} (Gu et al. 2024); {choosing(rules)} the dimension",
        f"{population_title('all')}, positions 0 to {sample.positions - 1}",
        "",
    )
    if not len(sinks):
        return drawing.empty("Nothing is drawn: no layer of this model has attention patterns.")
    massive = _massive(emergence, dims.filter(pl.col("rule").is_in([*rules])))
    figure = _figure(sinks, massive, sample)
    text, finding = " ".join(_sentences(sinks, massive, rules, sample)), _finding(sinks, massive, sample)
    return replace(drawing, text=text, views={"all": figure}, data=sinks, finding=finding)


def _finding(sinks: pl.DataFrame, massive: "_Massive | None", sample: SinkSample) -> str:
    """How often position 0 is a sink, and how that changes where the largest dim steps up."""
    rates = dict(first_key_by_layer(sinks).select("layer", "sink_rate").iter_rows())
    text = (
        f"Position 0 is a sink (alpha > {number(sample.threshold)}) in {percent(_overall(sinks.filter(token=0)))} of "
        "(sequence, layer, head)"
    )
    if massive is not None and massive.step_up in rates and (after := _reading(rates, massive)) is not None:
        return (
            f"{text}: {percent(rates[massive.step_up])} in layer {massive.step_up}, where dimension "
            f"{dim_mark(massive.dim)} steps up, {percent(rates[after])} in layer {after}, whose attention first reads "
            "it."
        )
    layer = max(rates, key=rates.__getitem__)
    return f"{text}, most often in layer {layer} ({percent(rates[layer])})."


def _reading(rates: Mapping[int, float], massive: "_Massive") -> int | None:
    """The first layer whose attention reads what the dim has after its step up."""
    return min((layer for layer in rates if layer > massive.step_up), default=None)


@dataclass(frozen=True)
class _Massive:
    """The largest selected dim in population all: max |x| on resid_post by layer, and its step up."""

    dim: int
    rule: str
    step_up: int
    values: Mapping[int, float]


def _massive(emergence: pl.DataFrame, dims: pl.DataFrame) -> _Massive | None:
    chosen = dims.filter(pl.col("selected"), population="all").drop_nulls("step_up")
    if not len(chosen):
        return None
    row = largest_of_each(chosen, "max_abs", "dim").row(0, named=True)
    rows = emergence.filter(population="all", site="resid_post", dim=row["dim"]).sort("layer")
    return _Massive(row["dim"], row["rule"], row["step_up"], dict(rows.select("layer", "max_abs").iter_rows()))


def _sentences(sinks: pl.DataFrame, massive: _Massive | None, rules: Collection[str], sample: SinkSample) -> list[str]:
    """What can be read off, computed from the tables."""
    rates = dict(first_key_by_layer(sinks).select("layer", "sink_rate").iter_rows())
    length, limit = sample.positions, number(sample.threshold)
    said = [
        "Alpha is the mean probability that a key gets from the queries that can see it, over the "
        f"first {length} positions of {count(sample.sequences, 'sequence')}"
        + (f" in {layers([*rates])}, which alone have attention" if sample.layers_without_patterns else "")
        + f"; a key with alpha > {limit} is a sink."
    ]
    if highest := max(rates.values()):
        strong = [layer for layer, rate in rates.items() if rate >= highest / 2]
        layer = max(rates, key=rates.__getitem__)
        said.append(
            f"The sink rate of position 0, the mean over heads, is largest in layer {layer} ({percent(highest)}), and "
            f"at least half of that in {layers(strong)}."
        )
    learned = sinks.filter("learned")
    if len(learned):
        share = percent(_overall(learned))
        said.append(f"The learned sink, which has no position, is one in {share} of (sequence, layer, head).")
    if massive is not None:
        up = massive.step_up
        after = _reading(rates, massive)
        reads = (
            "no attention reads that" if after is None else f"the attention of layer {after} is the first to read that"
        )
        said.append(
            f"Dimension {dim_mark(massive.dim)}, the largest by rule {massive.rule}, reaches half of its largest |x| "
            f"on resid_post in layer {up}; {reads}."
        )
    else:
        said.append(
            f"By {rules_named(rules)}, no dimension has massive activations, so none is drawn below."
            if rules
            else "No rule lists massive activations, so no dimension is drawn below."
        )
    if sample.short_sequences:
        said.append(
            f"Of these, {count(sample.short_sequences, 'sequence')} with fewer positions: alpha there is a mean over "
            "fewer queries, and larger."
        )
    if sample.layers_without_patterns:
        said.append(f"Grey, without attention patterns: {layers(sample.layers_without_patterns)}.")
    said.append("The last positions are seen by few queries, themselves among them.")
    if length > KEYS_SHOWN:
        said.append(f"Keys at positions from {KEYS_SHOWN} on are not drawn.")
    return said


def _overall(rows: pl.DataFrame) -> float:
    """Share over (sequence, layer, head)."""
    weighted = pl.col("sink_rate") * pl.col("sequences")
    return float(rows.select(weighted.sum() / pl.col("sequences").sum()).item())


def _figure(sinks: pl.DataFrame, massive: _Massive | None, sample: SinkSample) -> go.Figure:
    heads, last = 1 + max(sinks["head"].to_list()), sample.blocks - 1
    has_learned = bool(sinks["learned"].any())
    keys = min(KEYS_SHOWN, 1 + max(sinks["token"].drop_nulls().to_list()))
    heights = [max(120, min(320, 14 * heads)), 11 * (keys + has_learned) + 20, 150]
    figure = panels(heights, [""])
    top = 20  # there is no legend
    figure.update_layout(plot_bgcolor=PALE, height=figure.layout.height - top, showlegend=False)
    figure.update_layout(margin={"l": 96, "r": 100, "t": figure.layout.margin.t - top})
    names = [*map(str, range(keys)), *["learned"] * has_learned]
    by_head = sinks.filter(token=0).select("head", "layer", "sink_rate")
    rows = pl.when("learned").then(keys).otherwise("token").alias("row")
    by_key = sinks.select(rows, "layer", "sink_rate").group_by("row", "layer").agg(pl.col("sink_rate").mean())
    _add_map(figure, by_head, [*map(str, range(heads))], last, 1, "head", "sink rate of position 0")
    _add_map(figure, by_key.select("row", "layer", "sink_rate"), names, last, 2, "key", "sink rate, mean over heads")
    figure.update_yaxes(title_text="head<br>(key at position 0)", row=1)
    figure.update_yaxes(title_text="position of the key<br>(mean over heads)", row=2)
    _add_magnitude(figure, massive, last)
    set_layer_axis(figure, last, 3)
    first = figure.get_subplot(1, 1).yaxis.domain
    figure.data[0].update(
        showscale=True,
        colorbar={"title": {"text": "sink rate", "side": "right"}, "thickness": 12, "x": 1.01, "ypad": 0, "y": first[1],
                  "yanchor": "top", "len": first[1] - figure.get_subplot(2, 1).yaxis.domain[0], "tickformat": ".0%"},
    )  # fmt: skip
    return figure


def _add_map(
    figure: go.Figure, rows: pl.DataFrame, names: Sequence[str], last: int, row: int, what: str, value: str
) -> None:
    cells = {(place, layer): rate for place, layer, rate in rows.iter_rows()}
    figure.add_heatmap(
        x=list(range(last + 1)),
        y=list(range(len(names))),
        z=[[_short(cells.get((place, layer))) for layer in range(last + 1)] for place in range(len(names))],
        customdata=[[name] * (last + 1) for name in names],
        hovertemplate=f"{what} %{{customdata}}, layer %{{x}}<br>{value} %{{z:.3p}}<extra></extra>",
        hoverongaps=False,
        colorscale="Viridis",
        zmin=0,
        zmax=1,
        xgap=1,
        showscale=False,
        row=row,
        col=1,
    )
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if len(names) <= 17 * step)
    shown = [place for place, name in enumerate(names) if place % step == 0 or not name.isdecimal()]
    figure.update_yaxes(
        tickvals=shown, ticktext=[names[place] for place in shown], range=[len(names) - 0.5, -0.5], showgrid=False,
        row=row,
    )  # fmt: skip
    figure.update_xaxes(showgrid=False, row=row)


def _short(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 4)


def _add_magnitude(figure: go.Figure, massive: _Massive | None, last: int) -> None:
    figure.update_yaxes(title_text="max |x|, resid_post<br>(activation)", row=3)
    if massive is None:
        say_nothing_here(figure, "no dimension has massive activations", 3, 1)
        return
    set_panel_dim(figure, massive.dim, 3)
    values = [massive.values.get(layer) for layer in range(last + 1)]
    low, high = decades([value for value in values if value] or [1.0])
    figure.add_scatter(
        x=list(range(last + 1)),
        y=values,
        mode="lines+markers",
        line={"color": VERMILLION, "width": 1.8},
        marker={"size": 6},
        hovertemplate=f"dimension {massive.dim}, layer %{{x}}<br>max |x| %{{y:.4g}}<extra></extra>",
        row=3,
        col=1,
    )
    figure.add_annotation(
        text=f"dimension {massive.dim}", x=1, y=0, xref="x domain", yref="y domain", xanchor="right", yanchor="bottom",
        showarrow=False, row=3, col=1,
    )  # fmt: skip
    figure.update_yaxes(**log_axis(low, high, most=5), row=3)
