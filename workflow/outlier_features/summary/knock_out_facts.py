"""What a model does without its sublayers and heads, and what a super weight is worth by degrees."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from outlier_features.ablate.ablation_effects import ablation_sample
from outlier_features.ablate.knock_out_effects import SUBLAYERS, blocks_of, knock_out_effects, knocked_out
from outlier_features.dim_marks import dim_mark, marked_of
from outlier_features.summary.ablation_facts import beside_the_run
from outlier_features.summary.fact import Fact
from outlier_features.visible_text import visible
from outlier_features.wording import capital, layers, listing, number, percent

Part = Mapping[str, Any]
TOP = 3  # heads, and blocks of a kind, that are named
_POSITIONS = {
    "massive": "at {} massive tokens",
    "massive_first": "at those of {} massive tokens that are first or special",
    "massive_later": "at {} later massive tokens",
}


def knock_outs_summary(knock_outs: pl.DataFrame, dims: pl.DataFrame, facts: Part) -> dict[str, Any]:
    """The sample, what was not tried, and the effects: of single blocks and heads those with the largest losses.

    The table has all of them.
    """
    effects = knock_out_effects(knock_outs, dims)
    told, blocks = [], dict[str, list[dict[str, Any]]]()
    for effect in effects:
        alone = effect["target"] in SUBLAYERS and len(blocks_of(effect)) == 1
        if alone or effect["target"] == "head":
            blocks.setdefault(effect["target"], []).append(effect)
        else:
            told.append(effect)
    largest = {
        target: sorted(rows, key=lambda row: -1e300 if row["nll_change"] is None else -row["nll_change"])[:TOP]
        for target, rows in blocks.items()
    }
    return {**facts, "heads": len(blocks.get("head", ())), "effects": told, "largest": largest}


def knock_out_facts(results: Part, loss: Part | None) -> Iterator[Fact]:
    """Sublayers off, the heads that the loss needs most, massive tokens and super weights by degrees."""
    base = results["effects"][0]
    text = (
        f"With parts of it off, over the {ablation_sample(results)}: the unchanged model has perplexity "
        f"{number(base['perplexity'])}.{beside_the_run(loss)}"
    )
    parts = [*map(_whole, _of(results, *SUBLAYERS)), *_largest(results["largest"])]
    parts += [*map(_massive, _of(results, "massive_tokens")), *_weights(_of(results, "weight"))]
    for target, reasons in results["not_tried"].items():
        parts += [f"Not tried: {target} of {layers(its)} ({visible(why)})." for why, its in reasons.items()]
    told = tuple(Fact(what="knocked out", topic="effect", short=part) for part in parts)
    yield Fact(what="knock-outs", topic="effect", short=text, values=results, parts=told)


def _of(results: Part, *targets: str) -> list[Part]:
    return [effect for effect in results["effects"] if effect["target"] in targets]


def _whole(effect: Part) -> str:
    return f"Without {marked_of(knocked_out(effect))}: {_outcome(effect)}{_left(effect)}."


def _outcome(effect: Part) -> str:
    if effect["nll_change"] is None:
        return "the loss is not finite"
    return f"perplexity {number(effect['perplexity'])} (loss {effect['nll_change']:+.3g} nats per token)"


def _left(effect: Part) -> str:
    """What is left of the dims that are followed."""
    known = [dim for dim in effect["massive"] if dim["share"] is not None]
    if not known:
        return ""
    each = [
        f"{percent(dim['share'])} of dimension {dim_mark(dim['dim'])} (layer {dim['layer']})" for dim in known[:TOP]
    ]
    return f"; left at the massive tokens: {listing(each)}"


def _largest(largest: Mapping[str, Sequence[Part]]) -> Iterator[str]:
    for target, rows in largest.items():
        finite = [row for row in rows if row["nll_change"] is not None]
        each = [f"{_place(row)} ({row['nll_change']:+.3g})" for row in finite]
        noun = {"head": "heads", "mlp": "MLPs", "mixer": "mixers"}.get(target, "layers of attention")
        if finite:
            yield f"Of single {noun} the loss needs most, in nats per token: {listing(each)}{_left(finite[0])}."


def _place(effect: Part) -> str:
    layer = blocks_of(effect)[0]
    return f"layer {layer}" if effect["head"] is None else f"layer {layer} head {effect['head']}"


def _massive(effect: Part) -> str:
    whose = "their" if "+" in effect["dims"] else "its"
    where = _POSITIONS[effect["positions"]].format(whose)
    value = "zero" if effect["value"] == "zero" else f"{whose} mean there"
    return f"{capital(marked_of(knocked_out(effect)))} {where} set to {value}: {_outcome(effect)}."


def _weights(effects: Sequence[Part]) -> Iterator[str]:
    for one in dict.fromkeys((row["layers"], row["dims"], row["cols"]) for row in effects):
        own = [row for row in effects if (row["layers"], row["dims"], row["cols"]) == one]
        curve = {row["scale"]: row["perplexity"] for row in own if row["value"] == "scaled"}
        finite = {scale: value for scale, value in curve.items() if value is not None}
        if not finite:
            continue
        best = min(finite, key=lambda scale: finite[scale])
        (back,) = (row["perplexity"] for row in own if row["value"] == "restored")
        yield (
            f"{capital(marked_of(knocked_out(own[0])))} times 0, 1 and 3: perplexity {number(curve[0.0])}, "
            f"{number(curve[1.0])} and {number(curve[3.0])}, lowest at {number(best)} ({number(finite[best])}); zero, "
            f"with its largest value on mlp_down put back in each sequence: {number(back)}."
        )
