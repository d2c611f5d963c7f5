"""Each ablation beside the unchanged model and the random draws that were treated alike."""

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from outlier_features.dim_marks import Sentence, dim_mark
from outlier_features.wording import count, listing, some

EXPERT_SITE = "expert_out"  # what is set to zero where an expert is pruned
MOST_NATS = 700.0  # per token; exp of some more is not finite
NAMED = 4
Row = Mapping[str, Any]
_SAME = ("site", "layers", "number", "positions", "value")


def ablation_effects(ablation: pl.DataFrame, by_sequence: pl.DataFrame) -> list[dict[str, Any]]:
    """The rows of `ablation` that are not random, the unchanged model first; empty where nothing was run.

    To each row come `sequences`, the perplexity of each by itself; `ratio`, its perplexity / that of the unchanged
    model, and `ratios`, the same of each sequence; and `random`, the rows of its draws, with their `sequences`.
    """
    rows = ablation.rows(named=True)
    alone: dict[int, list[float | None]] = {row["variant"]: [] for row in rows}
    measured = by_sequence.filter(pl.col("tokens") > 0).sort("variant", "sequence")
    for variant, nll, tokens in measured.select("variant", "nll", "tokens").iter_rows():
        lost = nll is None or nll / tokens >= MOST_NATS
        alone[variant].append(None if lost else math.exp(nll / tokens))
    for row in rows:
        row["sequences"] = alone[row["variant"]]
    draws: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["target"] == "random":
            draws.setdefault(tuple(row[name] for name in _SAME), []).append(row)
    return [
        row
        | {
            "ratio": _ratio(row["perplexity"], rows[0]["perplexity"]),
            "ratios": [_ratio(one, base) for one, base in zip(row["sequences"], rows[0]["sequences"], strict=True)],
            "random": draws.get(tuple(row[name] for name in _SAME), []),
        }
        for row in rows
        if row["target"] != "random"
    ]


def target_name(effect: Row) -> Sentence:
    """What was changed, in words: dims, weights or experts, and where."""
    if effect["site"] == EXPERT_SITE:
        return Sentence(_experts(effect))
    layers, dims, cols = ((effect[name] or "").split("+") for name in ("layers", "dims", "cols"))
    if effect["target"] == "weight":
        if len(dims) == 1:
            return Sentence(f"weight W_down[{dim_mark(dims[0])}, {cols[0]}] of layer {layers[0]}")
        return Sentence(f"all {len(dims)} super weights")
    noun = "dimension" if len(dims) == 1 else "dimensions"
    named = some([*map(dim_mark, dims)], NAMED)
    if not effect["layers"]:
        return Sentence(f"{noun} {named} in every {listing(effect['site'].split('+'))}")
    return Sentence(f"{noun} {named} on {effect['site']} of {_blocks(layers)}")


def ablation_sample(ablation: Row) -> str:
    """What the ablations ran on, for the middle of a sentence."""
    return f"first {count(ablation['tokens'], 'token')} of the first {count(ablation['sequences'], 'sequence')}"


def position_name(positions: str, only_first_excluded: bool) -> str:
    if positions == "excluded":
        return "the first position" if only_first_excluded else "the first position and special tokens"
    return {"rest": "all other positions", "all": "every position"}[positions]


def _experts(effect: Row) -> str:
    layers, experts = (effect[name].split("+") for name in ("layers", "experts"))
    named = [
        f"{'the shared expert' if expert == 'shared' else f'expert {expert}'} of layer {layer}"
        for layer, expert in zip(layers, experts, strict=True)
    ]
    if effect["target"] == "expert" and len(named) > 1:
        return f"all {len(named)} super experts"
    return some(named, NAMED)


def _ratio(one: float | None, base: float | None) -> float | None:
    return None if one is None or base is None else one / base


def _blocks(layers: list[str]) -> str:
    distinct = list(dict.fromkeys(layers))
    return f"layer {distinct[0]}" if len(distinct) == 1 else f"layers {some(distinct, NAMED)}"
