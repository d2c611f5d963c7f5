"""Figures over the training of models: what each revision has, against the step that its name tells."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go
import polars as pl
from plotly.colors import sample_colorscale

from outlier_features.compare.compare_models import largest_over_median
from outlier_features.figures.compared_runs import Compared
from outlier_features.figures.relative_depth import line_of
from outlier_features.figures.style import Drawing, decades, label, log_axis, panels, power
from outlier_features.model.bases import RESID_POST
from outlier_features.populations import over_population, population_title, population_titles
from outlier_features.wording import listing, number, percent, rules_named

_HEIGHT, _RULE_HEIGHT, _LAYERS_HEIGHT = 230, 120, 260
_MANY = 50  # times the smallest step: from then on steps are drawn on a logarithmic axis
_CURVES = (("largest_over_median", "largest |x| / median |x|"), ("bits_per_byte", "bits per byte"))
_UNKNOWN = ("Of revisions with the same weights only that of the latest step is drawn, and none without a step. A line "
            "says nothing of the steps between its points.")  # fmt: skip


def training_figures(compared: Compared) -> list[Drawing]:
    """Where models have revisions with steps: their curves, and those of each layer."""
    return [_curves(compared), _layers(compared)] if not compared.training.is_empty() else []


def _curves(compared: Compared) -> Drawing:
    rows = compared.training
    rules = rows.filter((pl.col("dims").max() > 0).over("rule", "sites")).select("rule", "sites").unique(
        maintain_order=True
    )  # fmt: skip
    silent = [rule for rule in rows["rule"].unique(maintain_order=True) if rule not in rules["rule"]]
    drawing = Drawing(
        "training-steps",
        "Over training: magnitude, loss, dimensions",
        "; ".join(site.replace("+", " + ") for site in dict.fromkeys([RESID_POST, *rules["sites"]])),
        listing(rules["rule"].unique(maintain_order=True)) or "none",
        population_titles(compared.populations),
        "A line for each model: the largest |x| of a sequence over the median |x|, both averaged over the sequences, "
        "of the block where that is largest; bits per byte of the text; and the number of dimensions that each rule "
        "selects, with 95 % intervals over sequences (that of a number of dimensions lies too low). " + _UNKNOWN
        + (f" By {rules_named(silent)} no dimension passes at any step." if silent else ""),
        min_width=700,
    )  # fmt: skip
    views = {population: _curves_of(compared, rules.rows(), population) for population in compared.populations}
    measured = (f"{name}{end}" for name in ("bits_per_byte", "dims") for end in ("", "_low", "_high"))
    names = ("run", "revision", "step", "rule", "sites", "population", "largest_over_median", *measured)
    return replace(drawing, views=views, data=rows.select(names), finding=_change(compared))


def _change(compared: Compared) -> str:
    """Of the first model, the magnitude at its first and last step, and the step at which it is largest."""
    population = compared.populations[0]
    known = compared.training.filter(pl.col("largest_over_median").is_not_null(), population=population)
    if known.is_empty():
        return ""
    model, corpus = known.select("model", "corpus").row(0)
    mine = known.filter(model=model, corpus=corpus).unique("run", keep="first", maintain_order=True).sort("step")
    steps, values = mine["step"].to_list(), mine["largest_over_median"].to_list()
    most = values.index(max(values))
    return (
        f"{compared.trained_name(model, corpus)}, {over_population(population)}: the largest |x| is "
        f"{number(values[0])} medians at step {number(steps[0])} and {number(values[-1])} at step {number(steps[-1])}; "
        f"the most is {number(values[most])}, at step {number(steps[most])}."
    )


def _curves_of(compared: Compared, rules: Sequence[tuple[str, str]], population: str) -> go.Figure:
    rows = compared.training.filter(population=population)
    heights = [_HEIGHT] * len(_CURVES) + [_RULE_HEIGHT] * len(rules)
    figure = panels(heights, [population_title(population)])
    axis = _StepAxis.of(compared.training["step"])
    for row, (name, title) in enumerate(_CURVES, start=1):
        each = rows.unique("run", keep="first", maintain_order=True)
        _draw(figure, row, compared, each, name, title, axis)
        known = [value for value in each[name].drop_nulls() if value > 0]
        if name == "largest_over_median" and known:
            figure.update_yaxes(**log_axis(*decades(known)), row=row, col=1)
        figure.update_yaxes(title_text=title, row=row, col=1)
    for row, (rule, sites) in enumerate(rules, start=len(_CURVES) + 1):
        here = rows.filter(rule=rule, sites=sites)
        _draw(figure, row, compared, here, "dims", f"dims by {rule}", axis)
        several = sum(name == rule for name, _ in rules) > 1
        most = max((value or 0 for name in ("dims", "dims_high") for value in here[name].to_list()), default=0)
        figure.update_yaxes(
            title_text=label(rule) + (f"<br>{label(sites)}" if several else "") + "<br>dims",
            range=[-0.08 * max(most, 1), 1.12 * max(most, 1)], dtick=1 if most <= 4 else None, nticks=4, row=row, col=1,
        )  # fmt: skip
    axis.put(figure, len(heights))
    figure.update_layout(legend={"orientation": "v", "x": 1.01, "xanchor": "left", "y": 1, "yanchor": "top"})
    return figure


def _draw(
    figure: go.Figure, row: int, compared: Compared, rows: pl.DataFrame, name: str, title: str, axis: "_StepAxis"
) -> None:
    trained = compared.training.select("model", "corpus").unique(maintain_order=True).rows()
    for index, (model, corpus) in enumerate(trained):
        mine = rows.filter(pl.col(name).is_not_null(), model=model, corpus=corpus).sort("step", maintain_order=True)
        named = label(compared.trained_name(model, corpus))
        values = mine[name].to_list()
        figure.add_scatter(
            x=[axis.place(step) for step in mine["step"]], y=values,
            error_y=_bars(mine, name) if f"{name}_low" in mine.columns else None,
            customdata=[[label(revision), number(value)] for revision, value in mine.select("revision", name).rows()],
            name=named, legendgroup=f"{model}/{corpus}", showlegend=row == 1, mode="lines+markers",
            line=line_of(index), marker={"size": 5},
            hovertemplate=f"{named}, %{{customdata[0]}}<br>{title} %{{customdata[1]}}<extra></extra>",
            row=row, col=1,
        )  # fmt: skip


def _bars(rows: pl.DataFrame, name: str) -> dict[str, object]:
    ends = rows.select(
        more=(pl.col(f"{name}_high") - pl.col(name)).clip(0).fill_null(0),
        less=(pl.col(name) - pl.col(f"{name}_low")).clip(0).fill_null(0),
    )
    return {"type": "data", "symmetric": False, "thickness": 1, "width": 2, "array": ends["more"].to_list(),
            "arrayminus": ends["less"].to_list()}  # fmt: skip


def _layers(compared: Compared) -> Drawing:
    runs = compared.training.unique("run", keep="first", maintain_order=True)
    drawing = Drawing(
        "training-layers",
        "Over training: magnitude by layer",
        RESID_POST,
        "none, every value counts",
        population_titles(compared.populations),
        "A line for each block: the largest |x| of a sequence over the median |x|, both averaged over the sequences. "
        "The darker, the nearer to the embedding. " + _UNKNOWN,
        min_width=700,
    )
    frames = [
        largest_over_median(compared.layers[run], population).select(
            pl.lit(model).alias("model"), pl.lit(corpus).alias("corpus"), pl.lit(revision).alias("revision"),
            pl.lit(step, pl.Int64).alias("step"), "population", "layer", "top1", "median", "ratio",
        )
        for run, model, corpus, revision, step in runs.select("run", "model", "corpus", "revision", "step").iter_rows()
        for population in compared.populations
    ]  # fmt: skip
    data = pl.concat(frames)
    if data.is_empty():
        return drawing.empty(f"Nothing is drawn: no run has site {RESID_POST}.")
    views = {population: _layers_of(compared, data, population) for population in compared.populations}
    return replace(drawing, views=views, data=data, finding=_furthest(data, compared))


def _furthest(data: pl.DataFrame, compared: Compared) -> str:
    """The layer and step with the largest magnitude, and what that layer had at its first step."""
    known = data.filter(pl.col("ratio").is_not_null(), population=compared.populations[0]).sort("ratio")
    if known.is_empty():
        return ""
    most = known.row(-1, named=True)
    mine = known.filter(model=most["model"], corpus=most["corpus"], layer=most["layer"]).sort("step")
    return (
        f"The largest |x| is {number(most['ratio'])} medians in layer {most['layer']} of "
        f"{compared.trained_name(most['model'], most['corpus'])} at step {number(most['step'])}, against "
        f"{number(mine['ratio'][0])} in that layer at step {number(mine['step'][0])}."
    )


def _layers_of(compared: Compared, data: pl.DataFrame, population: str) -> go.Figure:
    trained = compared.training.select("model", "corpus").unique(maintain_order=True).rows()
    figure = panels([_LAYERS_HEIGHT] * len(trained), [population_title(population)])
    axis = _StepAxis.of(compared.training["step"])
    for row, (model, corpus) in enumerate(trained, start=1):
        here = data.filter(population=population, model=model, corpus=corpus)
        layers = here["layer"].unique().sort().to_list()
        for layer in layers:
            mine = here.filter(layer=layer).sort("step", maintain_order=True)
            said = [[label(revision), number(value)] for revision, value in mine.select("revision", "ratio").rows()]
            [colour] = sample_colorscale("Viridis", [0.9 * layer / max(layers[-1], 1)])
            figure.add_scatter(
                x=[axis.place(step) for step in mine["step"]], y=mine["ratio"].to_list(),
                customdata=said, name=f"layer {layer}", showlegend=False, mode="lines+markers", marker={"size": 4},
                line={"color": colour, "width": 1.4},
                hovertemplate=f"layer {layer}, %{{customdata[0]}}<br>%{{customdata[1]}} medians<extra></extra>",
                row=row, col=1,
            )  # fmt: skip
        low, high = decades([value for value in data["ratio"] if value > 0] or [1.0])
        figure.update_yaxes(
            **log_axis(low, high), title_text=f"{label(compared.trained_name(model, corpus))}<br>largest / median",
            row=row, col=1,
        )  # fmt: skip
    ends = [0.0, 0.5, 1.0]
    figure.add_scatter(
        x=[None], y=[None], mode="markers", showlegend=False, row=1, col=1,
        marker={
            "color": [0.0], "cmin": 0, "cmax": 1,
            "colorscale": [[part / 10, sample_colorscale("Viridis", [0.09 * part])[0]] for part in range(11)],
            "colorbar": {"title": {"text": "depth"}, "tickvals": ends, "ticktext": [*map(percent, ends)],
                         "thickness": 12, "len": _LAYERS_HEIGHT, "lenmode": "pixels", "y": 1, "yanchor": "top"},
        },
    )  # fmt: skip
    figure.update_layout(margin_r=90)
    axis.put(figure, len(trained))
    return figure


@dataclass(frozen=True)
class _StepAxis:
    """The axis of training steps: logarithmic where they reach far, with step 0 at its left end."""

    steps: tuple[int, ...]

    @classmethod
    def of(cls, steps: Iterable[int]) -> "_StepAxis":
        return cls(tuple(sorted(set(steps))))

    @property
    def log(self) -> bool:
        return self._first is not None and self.steps[-1] > _MANY * self._first

    @property
    def _first(self) -> int | None:
        """The first step after 0."""
        return next((step for step in self.steps if step > 0), None)

    def place(self, step: int) -> float:
        return step if step > 0 or not self.log else self._zero

    @property
    def _zero(self) -> float:
        assert self._first is not None
        return self._first / 3

    def put(self, figure: go.Figure, last_row: int) -> None:
        if self.log:
            assert self._first is not None
            low = self._zero if self.steps[0] == 0 else self._first
            exponents = [k for k in range(12) if self._first <= 10**k <= self.steps[-1]]
            zero = [(self._zero, "0")] if self.steps[0] == 0 else []
            ticks = zero + [(10.0**k, power(k)) for k in exponents]
            figure.update_xaxes(
                type="log", range=[math.log10(low) - 0.1, math.log10(self.steps[-1]) + 0.1],
                tickvals=[value for value, _ in ticks], ticktext=[text for _, text in ticks],
            )  # fmt: skip
        figure.update_xaxes(title_text="training step", row=last_row)
