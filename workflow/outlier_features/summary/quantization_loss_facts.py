"""What the whole model loses once its linear layers are rounded, and what each remedy takes away of that."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from outlier_features.files.quantization_columns import BOTH, CLIP, EXACT_DIMS, EXACT_RANDOM, NONE
from outlier_features.quantize.remedy_errors import TOLD
from outlier_features.summary.fact import Fact
from outlier_features.visible_text import visible
from outlier_features.wording import capital, count, listing, number, percent

Part = Mapping[str, Any]
_COLUMNS = ("scheme", "remedy", "setting", "perplexity", "nll_change", "low", "high", "kl")


def quantization_loss_summary(
    losses: pl.DataFrame, signals: pl.DataFrame, prefix: pl.DataFrame, facts: Part
) -> dict[str, Any]:
    """The sample; `effects`: the unchanged model, then all linear layers with input and weight rounded, by scheme and
    remedy; how well signals rank what single inputs cost; and what the prefix does.

    facts   `quantize_model` of the tables' provenance
    """
    whole = losses.filter(pl.col("scheme").is_null() | ((pl.col("what") == "all") & (pl.col("quantized") == BOTH)))
    return {
        **facts,
        "effects": whole.select(_COLUMNS).to_dicts(),
        "signals": signals.to_dicts(),
        "prefix_trial": prefix.to_dicts(),
    }


def quantization_loss_facts(results: Part) -> Iterator[Fact]:
    """The first scheme in a sentence; every scheme and remedy; and what foretells which inputs cost most.

    results   `quantization_losses` of summary.json
    """
    base, *effects = results["effects"]
    parts = [
        f"{visible(one['scheme'])}{'' if one['remedy'] == NONE else f', {remedy_name(one)}'}: {_outcome(one, base)}."
        for one in effects
    ]
    ranked = [one for one in results["signals"] if one["spearman_kl"] is not None and one["order"] != "kl"]
    if ranked:
        each = listing(f"{one['order']} {one['spearman_kl']:.2f}" for one in ranked)
        parts.append(f"Rank correlation with what inputs cost alone, by divergence of predictions: {each}.")
    parts += _prefix(results["prefix_trial"])
    told = tuple(Fact(what="rounded model", topic="effect", short=part) for part in parts)
    yield Fact(
        what="quantized model", topic="effect", short=loss_sentence(results), values=results, parts=told
    )  # fmt: skip


def _prefix(trial: Sequence[Part]) -> Iterator[str]:
    """What the run's prefix does to massive tokens and to the loss, of the same tokens with and without it."""
    without, behind = ([row for row in trial if bool(row["prefix"]) == there] for there in (False, True))
    if not without or not behind:
        return
    said = [f"{_rounding(row)} {number(row['perplexity'])}" for row in behind if row["perplexity"] is not None]
    before = [f"{_rounding(row)} {number(row['perplexity'])}" for row in without if row["perplexity"] is not None]
    yield (
        f"Behind a prefix of {count(behind[0]['prefix'], 'token')}, {behind[0]['massive']:,} of the text's tokens "
        f"have massive activations, without it {without[0]['massive']:,}. Perplexity on the same tokens: "
        f"{listing(said)}; without it: {listing(before)}."
    )


def _rounding(row: Part) -> str:
    if row["scheme"] is None:
        return "unchanged"
    what = "the prefix" if row["prefix"] else "first and special positions"
    return f"{visible(row['scheme'])}{f' with {what} exact' if row['exact'] else ''}"


def remedy_name(row: Part) -> str:
    """As in `TOLD`; of a quantile that it is made of, which."""
    if row["remedy"] == CLIP:
        return f"clipping, {row['setting']}"
    return TOLD[row["remedy"]]


def loss_sample(results: Part) -> str:
    return f"the first {count(results['tokens'], 'token')} of {count(results['sequences'], 'sequence')}"


def loss_sentence(results: Part) -> str:
    """Of the first scheme: perplexity, and what remedies take away of the divergence from the unchanged predictions,
    selected dims beside random ones. A rise of perplexity is too much one draw of rounding errors for shares of it."""
    effects = results["effects"][1:]
    row = _first(results, effects)
    if row is None:
        return ""
    said = f"{rise(results)}, over {loss_sample(results)}."
    if row["nll_change"] is None or row["nll_change"] <= 0 or (row["low"] is not None and row["low"] <= 0):
        return f"{said} That is no more than chance."
    own = [one for one in effects if one["scheme"] == row["scheme"] and one["remedy"] != NONE]
    tried = [(one, taken_away(one, row)) for one in own]
    known = [(one, share) for one, share in tried if share is not None]
    draws = [share for one, share in known if one["remedy"] == EXACT_RANDOM]
    dims = [share for one, share in known if one["remedy"] == EXACT_DIMS]
    counts = bool(dims and draws and dims[0] > max(draws))
    if dims:
        control = f", as many random dims take {_span(draws)} ({count(len(draws), 'draw')})" if draws else ""
        than = "" if counts or not draws else ", so that it does not count"
        said += (
            f" Of the divergence from the unchanged predictions, {number(row['kl'])} nats per token, leaving the "
            f"selected dims exact takes away {percent(dims[0])}{control}{than}."
        )
    rest = [
        (one, share)
        for one, share in known
        if one["remedy"] != EXACT_RANDOM and (one["remedy"] != EXACT_DIMS or counts) and share > 0
    ]
    if not rest:
        return f"{said} Nothing that was tried takes any of it away." if own else said
    best, share = max(rest, key=lambda one: one[1])
    of = "" if dims else " of the divergence from the unchanged predictions"
    return f"{said} {capital(remedy_name(best))} takes away most{of}, {percent(share)}."


def rise(results: Part) -> str:
    """What the first scheme makes of the perplexity; nothing without any."""
    base, *effects = results["effects"]
    row = _first(results, effects)
    if row is None:
        return ""
    return (
        f"With all linear layers rounded by {visible(row['scheme'])}, input and weight, perplexity goes from "
        f"{number(base['perplexity'])} to {_outcome(row, base)}"
    )


def taken_away(row: Part, without: Part) -> float | None:
    """The share of the divergence that a remedy takes away; None where either is not finite."""
    if row["kl"] is None or not without["kl"]:
        return None
    return 1 - float(row["kl"]) / float(without["kl"])


def _first(results: Part, effects: Sequence[Part]) -> Part | None:
    plain = {one["scheme"]: one for one in effects if one["remedy"] == NONE}
    names = (*results["remedied"], results["loss_scheme"], *plain)
    return next((plain[name] for name in names if name in plain), None)


def _outcome(row: Part, base: Part) -> str:
    if row["perplexity"] is None or row["nll_change"] is None or not base["perplexity"]:
        return "a number that is not finite"
    rise = row["perplexity"] / base["perplexity"] - 1
    ends = "" if row["low"] is None else f", 95 % interval over sequences {row['low']:.3g} to {row['high']:.3g}"
    return f"{number(row['perplexity'])} ({100 * rise:+.3g} %; loss {row['nll_change']:+.3g} nats per token{ends})"


def _span(shares: Sequence[float]) -> str:
    least, most = percent(round(min(shares), 3)), percent(round(max(shares), 3))
    return least if least == most else f"{least.removesuffix(' %')} to {most}"
