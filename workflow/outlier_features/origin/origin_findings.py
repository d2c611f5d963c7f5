"""Where traced dims come from, in words: sentences computed from the tables of rule trace_origin."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import polars as pl

from outlier_features.dim_marks import Sentence, dim_mark
from outlier_features.model.bases import RESID_POST
from outlier_features.origin.shares_of_parts import (
    BETWEEN,
    EMBEDDINGS,
    ROUNDING,
    ROUTED,
    SHARED,
    largest_layer,
    shares_of_parts,
)
from outlier_features.populations import population_title
from outlier_features.visible_text import place as place_of
from outlier_features.wording import capital, count, layers, listing, number, percent, rules_named

Row = dict[str, Any]

PARTS = {
    "resid_pre": "what was there before",
    "attn_out": "attention",
    "norm_after_attn": "the norm after attention",
    "mixer_out": "the mixer",
    "mlp_out": "the MLP",
    ROUTED: "the routed experts",
    SHARED: "the shared expert",
    "norm_after_mlp": "the norm after the MLP",
    "block": "the block",
}
SUMS = {
    EMBEDDINGS: "the embeddings",
    "attn_out": "attention",
    "mixer_out": "the mixers",
    "mlp_out": "the MLPs",
    ROUTED: "routed experts",
    SHARED: "shared experts",
    "norm_after_attn": "the norms after attention",
    "norm_after_mlp": "the norms after the MLPs",
    "block": "whole blocks",
    BETWEEN: "what the model does between its blocks",
    ROUNDING: "rounding",
}
STEPS = {
    "up": "where it steps up",
    "down": "where it steps down",
    "run_up": "where it steps up at another token",
    "run_down": "where it steps down at another token",
}
TENTH = 0.1
LEAST_SHARE = 1e-3
CHANGES_NAMED = 6
NEURONS_NAMED = 3
MOST = 0.95


def selection(
    lifecycle: pl.DataFrame, settings: Mapping[str, Any], rules: Collection[str], sites: Collection[str]
) -> str:
    """How the traced dims were chosen, in a run with these rules that list massive activations and these sites."""
    if settings["dims"] != "auto":
        return "Traced are the dims that `trace_origin.dims` names." if settings["dims"] else "No dim is traced."
    if "massive" in lifecycle["selection"]:
        return (
            f"Traced are the dims that {rules_named(rules, 'select')} over all tokens, at most the "
            f"{settings['max_dims']} largest."
        )
    why = (
        f"By {rules_named(rules)} no dim has massive activations over all tokens"
        if rules and RESID_POST in sites
        else f"No rule of massive activations was applied to {RESID_POST}"
    )
    return (
        f"{why}. Traced instead are the {settings['max_dims']} dims whose largest |x| on resid_post is most above what "
        "enters the first block."
    )


def traced_rule(rows: pl.DataFrame, rules: Collection[str]) -> str:
    """What selected the traced dims, for a caption.

    rows    of lifecycle.parquet or origin.parquet
    rules   those that list massive activations
    """
    names = listing(rules) or "no rule"
    said = {
        "massive": f"{names} (the selected dimensions)",
        "named": "none (the config names the dimensions)",
        "largest_rise": f"none ({names} selects no dimension; those that rise most)",
    }
    return "; ".join(said[name] for name in rows["selection"].unique(maintain_order=True)) or names


def traced_population(rows: pl.DataFrame) -> str:
    count_of = rows.select("sequence").n_unique()
    every = population_title("all")
    return f"{every}, in the {count(count_of, 'sequence')} traced" if count_of else every


def place(life: pl.DataFrame) -> str:
    """The traced token; `life` holds the rows of one dim."""
    return place_of(*life.select("sequence", "traced_token", "token_text").row(0))


def lifecycle_sentences(life: pl.DataFrame) -> list[Sentence]:
    """Which part of which layer makes the dim at the traced token, which change it most, and what it is made of; rows
    of one dim."""
    return [*map(Sentence, (_maker(life), _changes(life), _made_of(life)))]


def _made_of(life: pl.DataFrame) -> str:
    """The sums of the parts up to where the dim is largest; those below a thousandth are left out."""
    last = largest_layer(life)
    peak = float(life.filter(part="resid_post", layer=last)["value"].item())
    parts = [row for row in shares_of_parts(life) if abs(row["share"] or 0) >= LEAST_SHARE]
    named = (f"{percent(row['share'])} by {SUMS[row['part']]}" for row in sorted(parts, key=lambda row: -row["share"]))
    return (
        f"At this token it is largest after layer {last}, {number(peak)}, a hit of a rule or not, made up to there: "
        f"{listing(named) or 'by nothing'}."
    )


def whole_blocks(life: pl.DataFrame) -> str | None:
    """A sentence on the layers whose parts are not known; rows of any dims."""
    whole = life.filter(part="block")["layer"].unique().sort().to_list()
    if not whole:
        return None
    return (
        f"Of {layers(whole)} only what the whole block adds is known: its sublayers were not found, or their outputs "
        "do not sum to what it adds."
    )


def _maker(life: pl.DataFrame) -> str:
    after = {row["layer"]: row["value"] for row in life.filter(part="resid_post").iter_rows(named=True)}
    peak = max(after.values(), key=abs)
    layer = next(layer for layer, value in after.items() if abs(value) >= abs(peak) / 2)
    here, dim = after[layer], life["target_dim"][0]
    parts = {
        row["part"]: row["value"]
        for row in life.filter(pl.col("part") != "resid_post", layer=layer).iter_rows(named=True)
    }
    most = max(parts, key=lambda part: parts[part] * here)
    if most == "resid_pre" and layer == 0:
        return (
            f"The embeddings give dim {dim_mark(dim)} {number(parts[most])} at {place(life)}; after the first layer "
            f"it has {number(here)}."
        )
    if most == "resid_pre":
        return f"Dim {dim_mark(dim)} reaches {number(here)} after layer {layer} at {place(life)} in several steps."
    verb = "write" if most == ROUTED else "writes"
    return (
        f"{capital(PARTS[most])} of layer {layer} {verb} {number(parts[most])} into dim {dim_mark(dim)} at "
        f"{place(life)}; after the layer it has {number(here)}."
    )


def _changes(life: pl.DataFrame) -> str:
    """The parts that change the dim by at least a tenth of its largest |x|, and if they are many, the largest."""
    peak = float(life.filter(part="resid_post")["value"].abs().max())  # type: ignore[arg-type]
    added = life.filter(~pl.col("part").is_in(["resid_pre", "resid_post"]))
    large = [row for row in added.iter_rows(named=True) if abs(row["value"]) >= TENTH * peak]
    if not large:
        return f"No single part changes it by a tenth of its largest |x|, {number(peak)}."
    kept = sorted(large, key=lambda row: -abs(row["value"]))[:CHANGES_NAMED]
    named = [f"{PARTS[row['part']]} of layer {row['layer']} {signed(row['value'])}" for row in large if row in kept]
    rest = [f"{len(large) - len(kept)} smaller"] if len(large) > len(kept) else []
    return f"Its changes of at least a tenth of its largest |x|, {number(peak)}: {listing([*named, *rest])}."


def explosion_sentence(layer: int, ladder: Sequence[Row]) -> str:
    """The explosion point of a layer's ladder, and where the ladder stops."""
    stops = where_the_ladder_stops(layer, ladder)
    if stops and all(row["absent"] for row in ladder):
        return stops
    text = f"In the MLP of layer {layer} the largest |x| doubles at no checkpoint: there is no explosion point."
    for row in (row for row in ladder if row["explosion"]):
        before = row["max_abs"] - row["change"]
        text = (
            f"In the MLP of layer {layer} the largest |x| over the sequence grows most at {row['checkpoint']}: from "
            f"{number(before)} ({row['previous']}) to {number(row['max_abs'])}, {number(row['growth'])} times."
        )
    return f"{text} {stops}" if stops else text


def ladder_sentences(layer: int, ladder: Sequence[Row], neurons: pl.DataFrame) -> list[str]:
    """Where in a layer's MLP a dim grows, and which neurons feed it, where these are known."""
    return [explosion_sentence(layer, ladder), *([] if neurons.is_empty() else [neuron_sentence(neurons)])]


def activation_rows(ladder: Sequence[Row]) -> tuple[Row, Row] | None:
    """The checkpoints before and after the activation function, where both are known."""
    rows = {row["checkpoint"]: row for row in ladder if row["max_abs"] is not None}
    after = rows.get("act_gate") or rows.get("mlp_act")
    return (rows["mlp_pre"], after) if "mlp_pre" in rows and after else None


def neuron_sentence(neurons: pl.DataFrame) -> Sentence:
    """Which neurons feed the dim; rows of one dim and layer of origin_neurons.parquet."""
    total, dim, layer = float(neurons["contribution"].sum()), neurons["target_dim"][0], neurons["layer"][0]
    ranked = neurons.drop_nulls("neuron").sort("rank")
    head = f"Of the {number(total)} that the last linear of layer {layer}'s MLP writes into dim {dim_mark(dim)}"
    if not total:
        return Sentence(f"{head}, the contributions of its neurons cancel.")
    reach, given = _enough(ranked["share"].to_list())
    first = ranked.head(min(reach or NEURONS_NAMED, NEURONS_NAMED))
    named = listing(
        f"neuron {row['neuron']} gives {percent(row['share'])} (activation {number(row['activation'])} x weight "
        f"{number(row['weight'])})"
        for row in first.iter_rows(named=True)
    )
    many = f"; the first {count(reach, 'neuron')} by |contribution| give {percent(given)} together" if reach > 1 else ""
    return Sentence(f"{head}, {named}{many}.")


def _enough(shares: Sequence[float]) -> tuple[int, float]:
    """How many of the first shares sum to the whole within 5 % and stay there as more are added, and their sum."""
    sums = list(accumulate(shares))
    outside = [index for index, total in enumerate(sums, start=1) if abs(total - 1) > 1 - MOST]
    reach = max(outside, default=0) + 1
    return (reach, sums[reach - 1]) if reach <= len(sums) else (0, 0.0)


def ladders(origin: pl.DataFrame, dim: int) -> Iterator[tuple[int, str, list[Row]]]:
    """Layer, step and rows of each ladder of a dim."""
    for (layer, step), rows in origin.filter(target_dim=dim).group_by("layer", "step", maintain_order=True):
        yield int(str(layer)), str(step), rows.to_dicts()


def signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)


def where_the_ladder_stops(layer: int, rows: Sequence[dict[str, Any]]) -> str | None:
    """A sentence on the checkpoints that the MLP of `layer` lacks, or None; `rows` are its rows of origin.parquet."""
    absent = {row["checkpoint"]: row["absent"] for row in rows if row["absent"]}
    if not absent:
        return None
    left = [row["checkpoint"] for row in rows if not row["absent"]]
    verb, reasons = "is" if len(absent) == 1 else "are", "; ".join(dict.fromkeys(absent.values()))
    has = f"the ladder has {listing(left)} alone" if left else "there is no ladder"
    return f"In layer {layer} {listing(absent)} {verb} absent ({reasons}), so {has}."
