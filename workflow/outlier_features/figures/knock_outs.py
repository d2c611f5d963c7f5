"""The figures of knock-outs: sublayers by layer, heads, and super weights by degrees."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import polars as pl

from outlier_features.ablate.ablation_effects import ablation_sample
from outlier_features.ablate.knock_out_effects import SUBLAYERS, blocks_of, knock_out_effects, knocked_out
from outlier_features.dim_marks import dim_mark, marked_of
from outlier_features.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    VERMILLION,
    Drawing,
    above,
    decades,
    label,
    log_axis,
    panels,
    set_layer_axis,
    set_panel_dim,
)
from outlier_features.populations import population_title
from outlier_features.wording import capital, number, percent

Part = Mapping[str, Any]
MAX_DIMS = 3
MAX_HEADS = 64  # of a layer
_KINDS = {
    "attention": ("attention", BLUE, "circle"),
    "mixer": ("mixer", GREEN, "square"),
    "mlp": ("MLP", ORANGE, "diamond"),
}
_DIVERGING = [(0, BLUE), (0.5, "#FFFFFF"), (1, VERMILLION)]


def knock_out_figures(
    knock_outs: pl.DataFrame, dims: pl.DataFrame, results: Part, listing_rules: Collection[str]
) -> list[Drawing]:
    """The three figures.

    results         `knock_outs` of summary.json
    listing_rules   those that list massive activations
    """
    effects = knock_out_effects(knock_outs, dims)
    of_heads = [row for row in effects if row["target"] == "head"]
    of_weights = [row for row in effects if row["target"] == "weight"]
    base = effects[0]
    rules = ", ".join(listing_rules) or "none"
    return [
        _sublayers(effects, base, results, rules),
        _heads(of_heads, results, rules),
        _scales(of_weights, base, results),
    ]


def _sublayers(effects: Sequence[Part], base: Part, results: Part, rules: str) -> Drawing:
    dims = base["massive"][:MAX_DIMS]
    rows = [row for row in effects if row["target"] in _KINDS]
    text = (
        "What a sublayer adds to the residual stream is set to zero in one layer, over the "
        f"{ablation_sample(results)}. "
        + (
            "Above: the mean of a massive dimension over its massive tokens, in the layer where it is largest, as a "
            "share of that in the unchanged model. Below: perplexity. "
            if dims
            else "No dimension is massive. "
        )
        + "Lines across: the sublayers of all layers at once. Dashed: the unchanged model."
    )
    off = [SUBLAYERS[kind] for kind in _KINDS if any(row["target"] == kind for row in rows)]
    sites = ", ".join([*off, "resid_post"])
    drawing = Drawing("knock-outs", "Without a sublayer", sites, rules, population_title("all"), text)
    if not rows:
        return drawing.empty("Nothing is drawn: no sublayer of the model was found.")
    figure = panels([180] * len(dims) + [240], [""])
    single = [row for row in rows if len(blocks_of(row)) == 1]
    for kind, (name, colour, symbol) in _KINDS.items():
        own = [row for row in single if row["target"] == kind]
        for at in range(len(dims) + 1) if own else ():
            figure.add_scatter(
                x=[blocks_of(row)[0] for row in own], y=[_value(row, at, dims) for row in own], name=name,
                legendgroup=kind, showlegend=at == 0, mode="lines+markers", line={"color": colour, "width": 1.5},
                marker={"symbol": symbol, "size": 7, "line": {"color": INK, "width": 0.5}},
                customdata=[_hover(row, at, dims) for row in own],
                hovertemplate="%{customdata}<extra></extra>", row=at + 1, col=1,
            )  # fmt: skip
    last = len(dims)
    perplexities = [row["perplexity"] for row in (*single, base) if row["perplexity"] is not None]
    top = 30 * max(perplexities, default=1.0)  # all sublayers off may be many decades above
    for row in rows:
        for at in range(last + 1) if len(blocks_of(row)) > 1 else ():
            _add_line(figure, row, at, _value(row, at, dims), top if at == last else None)
    for at, dim in enumerate(dims):
        set_panel_dim(figure, dim["dim"], at + 1)
        title = f"dim {dim['dim']} in layer {dim['layer']}<br>share of {number(dim['unchanged_mean'])}"
        figure.update_yaxes(title_text=title, tickformat=".0%", zeroline=True, zerolinecolor=GREY, row=at + 1, col=1)
    figure.update_yaxes(title_text="perplexity", row=last + 1, col=1, **log_axis(*decades([*perplexities, top])))
    figure.update_yaxes(range=[math.log10(min(perplexities, default=1.0)) - 0.3, math.log10(top)], row=last + 1, col=1)
    for at, value in enumerate([*(1.0 for _ in dims), base["perplexity"]]):
        if value is not None:
            figure.add_hline(y=value, line={"color": INK, "dash": "dash", "width": 1}, row=at + 1, col=1)
    figure.update_layout(legend={"y": above(figure)}, margin_l=112)
    set_layer_axis(figure, max(layer for row in rows for layer in blocks_of(row)), last + 1)
    return replace(drawing, views={"all": figure}, data=_flat([base, *rows]), finding=_needed(single, base))


def _needed(single: Sequence[Part], base: Part) -> str:
    """The sublayer of one layer that the largest dim needs most, and the one that the loss needs most."""
    said = []
    left = [row for row in single if row["massive"] and row["massive"][0]["share"] is not None]
    if left:
        row = min(left, key=lambda row: abs(row["massive"][0]["share"]))
        dim = row["massive"][0]
        left_over = f"{percent(dim['share'])} of dimension {dim_mark(dim['dim'])} is left at its massive tokens"
        said.append(f"without {knocked_out(row)}, {left_over}")
    finite = [row for row in single if row["perplexity"] is not None]
    if finite:
        row = max(finite, key=lambda row: row["perplexity"])
        said.append(
            f"without {knocked_out(row)}, perplexity is {number(row['perplexity'])} instead of "
            f"{number(base['perplexity'])}, the most of any one layer"
        )
    return f"{capital('; '.join(said))}." if said else ""


def _add_line(figure: go.Figure, effect: Part, at: int, value: float | None, top: float | None) -> None:
    """A line across a panel for the sublayers of all layers; above `top`, on a logarithmic axis, its value alone."""
    name, colour, _ = _KINDS[effect["target"]]
    # Lines may lie on one another: each kind has a place for its name.
    anchor, x = {"attention": ("right", 0.99), "mixer": ("center", 0.5), "mlp": ("left", 0.01)}[effect["target"]]
    place: dict[str, Any] = {"row": at + 1, "col": 1}
    text: dict[str, Any] = {
        "x": x, "xref": "x domain", "xanchor": anchor, "showarrow": False, "font": {"size": 10},
    }  # fmt: skip
    if value is None or (top and value > top / 2):
        found = "not finite" if value is None else number(value)
        figure.add_annotation(text=f"all {name}: {found}", y=1, yref="y domain", yanchor="top", **text, **place)
        return
    figure.add_hline(y=value, line={"color": colour, "width": 1.5, "dash": "dot"}, **place)
    figure.add_annotation(text=f"all {name}", y=math.log10(value) if top else value, yshift=7, **text, **place)


def _value(effect: Part, at: int, dims: Sequence[Part]) -> float | None:
    """What a panel shows: of each dim the share that is left, last the perplexity."""
    found = effect["perplexity"] if at == len(dims) else effect["massive"][at]["share"]
    return None if found is None else float(found)


def _hover(effect: Part, at: int, dims: Sequence[Part]) -> str:
    if at == len(dims):
        change = effect["nll_change"]
        return f"without {label(knocked_out(effect))}<br>perplexity {number(effect['perplexity'])}" + (
            "" if change is None else f"<br>loss {change:+.4g} nats per token"
        )
    left = effect["massive"][at]
    return (
        f"without {label(knocked_out(effect))}<br>dim {left['dim']} in layer {left['layer']}: "
        f"{number(left['mean'])} of {number(left['unchanged_mean'])}, {percent(left['share'])}"
    )


def _heads(effects: Sequence[Part], results: Part, rules: str) -> Drawing:
    tokens = {**results, "tokens": results["head_tokens"]}
    drawing = Drawing("head-map", "Without a head", "attn_heads, resid_post", rules, population_title("all"), "")
    if not effects:
        return drawing.empty("Nothing is drawn: how many heads there are was not found.")
    text = (
        "A head's slice of what attention's last matrix reads is set to zero, one head at a time, over the "
        f"{ablation_sample(tokens)}. Colour: how much the loss changes"
    )
    dims = effects[0]["massive"][:1]
    if dims:
        text += (
            f", and by how much of its value dimension {dim_mark(dims[0]['dim'])} changes at its massive tokens in "
            f"layer {dims[0]['layer']}, where it is largest"
        )
    layers = sorted({blocks_of(row)[0] for row in effects})
    heads = 1 + max(row["head"] for row in effects)
    if heads > MAX_HEADS:
        return replace(drawing.empty(f"Not drawn: {heads} heads a layer; the table has them."), data=_flat(effects))
    columns = ["loss (nats per token)", *(f"dim {dim['dim']}, change of its value" for dim in dims)]
    figure = panels([max(160, 16 * len(layers))], columns, horizontal_spacing=0.16)
    figures: list[tuple[str, str]] = [("nll_change", "+.3g"), *(("share", "+.1%") for _ in dims)]
    for column, (key, form) in enumerate(figures, start=1):
        grid: list[list[float | None]] = [[None] * heads for _ in layers]
        for row in effects:
            if key == "nll_change":
                value = row["nll_change"]
            else:
                share = row["massive"][0]["share"]
                value = None if share is None else share - 1
            grid[layers.index(blocks_of(row)[0])][row["head"]] = value
        most = max((abs(value) for line in grid for value in line if value is not None), default=0) or 1
        figure.add_heatmap(
            z=grid, x=list(range(heads)), y=layers, colorscale=_DIVERGING, zmin=-most, zmax=most,
            colorbar={"thickness": 10, "tickformat": form, "len": 1, "x": 0.43 if column < len(figures) else 1.01},
            hovertemplate="layer %{y}, head %{x}<br>%{z:" + form + "}<extra></extra>", row=1, col=column,
        )  # fmt: skip
        figure.update_xaxes(title_text="head", dtick=max(1, heads // 8), row=1, col=column)
    figure.update_yaxes(title_text="layer (block, from 0)", autorange="reversed", row=1, col=1)
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(margin_r=70)
    drawn = replace(drawing, text=f"{text}.", views={"all": figure}, data=_flat(effects), min_width=700)
    return replace(drawn, finding=_needed_head(effects))


def _needed_head(effects: Sequence[Part]) -> str:
    """The head without which the loss changes most, and the one without which the largest dim does."""
    said = []
    finite = [row for row in effects if row["nll_change"] is not None]
    if finite:
        row = max(finite, key=lambda row: abs(row["nll_change"]))
        said.append(f"the loss changes most without {knocked_out(row)}, by {row['nll_change']:+.3g} nats per token")
    moved = [row for row in effects if row["massive"] and row["massive"][0]["share"] is not None]
    if moved:
        row = max(moved, key=lambda row: abs(row["massive"][0]["share"] - 1))
        dim = row["massive"][0]
        said.append(
            f"dimension {dim_mark(dim['dim'])} without {marked_of(knocked_out(row))}, which leaves "
            f"{percent(dim['share'])} of its value at its massive tokens"
        )
    return f"{capital('; '.join(said))}." if said else ""


def _scales(effects: Sequence[Part], base: Part, results: Part) -> Drawing:
    drawing = Drawing(
        "super-weight-scale",
        "A super weight, from zero to three times itself",
        "mlp_down.weight",
        "super_weight",
        population_title("all"),
        f"Perplexity on the {ablation_sample(results)} while super weights are multiplied by a number (Yu et al. 2024, "
        "figure 6). Open marks: the weight is zero, and in each sequence the largest value of its row on mlp_down is "
        "put back. Dashed: the unchanged model.",
    )
    if not effects:
        return drawing.empty("Nothing is drawn: no super weight was found.")
    figure = panels([260], [""])
    sets = list(dict.fromkeys((row["layers"], row["dims"], row["cols"]) for row in effects))
    for one, colour in zip(sets, (VERMILLION, BLUE), strict=False):
        own = [row for row in effects if (row["layers"], row["dims"], row["cols"]) == one]
        curve = [row for row in own if row["value"] == "scaled"]
        name = label(knocked_out(own[0]))
        figure.add_scatter(
            x=[row["scale"] for row in curve], y=[row["perplexity"] for row in curve], mode="lines+markers", name=name,
            line={"color": colour, "width": 1.8}, marker={"size": 7},
            hovertemplate=name + "<br>times %{x}: perplexity %{y:,.5g}<extra></extra>", row=1, col=1,
        )  # fmt: skip
        back = [row["perplexity"] for row in own if row["value"] == "restored"]
        figure.add_scatter(
            x=[0.0] * len(back), y=back, mode="markers", name=f"{name}: zero, its value put back",
            marker={"symbol": "diamond-open", "size": 12, "color": colour, "line": {"width": 2}},
            hovertemplate=name + "<br>zero, its value put back: perplexity %{y:,.5g}<extra></extra>", row=1, col=1,
        )  # fmt: skip
    if base["perplexity"] is not None:
        figure.add_hline(y=base["perplexity"], line={"color": INK, "dash": "dash", "width": 1}, row=1, col=1)
    values = [row["perplexity"] for row in (*effects, base) if row["perplexity"] is not None]
    if values and max(values) > 4 * min(values):
        figure.update_yaxes(**log_axis(*decades(values)))
    figure.update_yaxes(title_text="perplexity")
    figure.update_xaxes(title_text="times the weight", range=[-0.12, 3.12], dtick=0.5)
    figure.update_layout(legend={"y": above(figure)}, margin_t=64 + 18 * len(sets))
    return replace(drawing, views={"all": figure}, data=_flat([base, *effects]), finding=_worth(effects, base))


def _worth(effects: Sequence[Part], base: Part) -> str:
    """What the first weight is worth: at zero, with its value put back, and where perplexity is lowest."""
    first = effects[0]
    own = [row for row in effects if all(row[key] == first[key] for key in ("layers", "dims", "cols"))]
    zero = [row for row in own if row["value"] == "scaled" and row["scale"] == 0]
    back = [row for row in own if row["value"] == "restored"]
    finite = [row for row in own if row["value"] == "scaled" and row["perplexity"] is not None]
    text = f"With {marked_of(knocked_out(first))} at zero, perplexity is " + " ".join(_perplexity(row) for row in zero)
    text += f" instead of {_perplexity(base)}"
    text += "".join(f", and {_perplexity(row)} with its value put back" for row in back)
    if finite:
        best = min(finite, key=lambda row: row["perplexity"])
        text += f"; it is lowest, {_perplexity(best)}, at {number(best['scale'])} times the weight"
    return f"{text}."


def _perplexity(row: Part) -> str:
    return "not finite" if row["perplexity"] is None else number(row["perplexity"])


def _flat(effects: Sequence[Part]) -> pl.DataFrame:
    """A row for each variant and dim that is followed."""
    rows = []
    for effect in effects:
        own = {key: value for key, value in effect.items() if key != "massive"}
        rows += [own | {f"massive_{key}": value for key, value in dim.items()} for dim in effect["massive"]] or [own]
    return pl.DataFrame(rows, infer_schema_length=None)
