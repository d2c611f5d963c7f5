"""The first words of a run's page: one sentence on the dim that stands out most, four numbers, and what they hang on.

Each clause stands only where the tables carry it, and with the numbers that do.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from outlier_features.ablate.ablation_effects import ablation_sample, position_name
from outlier_features.dim_marks import Sentence, dim_mark
from outlier_features.model.bases import RESIDUAL
from outlier_features.rules.kinds import followed, of_kind
from outlier_features.rules.rule import SCALES, HitRule
from outlier_features.rules.systematic import LAYER_READINGS, Systematic
from outlier_features.summary.facts import is_dump
from outlier_features.summary.in_short import largest
from outlier_features.summary.run_rules import applied_sites, listed, run_rules, selected_dims
from outlier_features.wording import DASH, capital, count, listing, number, percent, rules_named, some, with_article

Part = Mapping[str, Any]
Tables = Mapping[str, pl.DataFrame]
SPOKEN_OF = ("massive", "sensitivity", "lifecycle")  # beside the summary; what is not there is not spoken of
TELLS_NOTHING = 0.5  # of all dims: a threshold that so many pass does not tell outliers from others
HALF = 0.5  # of its largest value: what a dim jumps by
# How much the perplexity grows, and what that is called.
LOST, FAR_WORSE, WORSE, SAME = 100.0, 2.0, 1.05, 0.01


@dataclass(frozen=True)
class Lead:
    """The dim that the page begins with: the largest that `rule` selects in population all."""

    dim: int
    rule: HitRule


@dataclass(frozen=True)
class BigNumber:
    """A number that a newcomer understands, what it is, and what it stands on."""

    value: str
    what: str
    where: str


@dataclass(frozen=True)
class FirstWords:
    """`sentence` says what was found, `notes` what the answer hangs on."""

    sentence: str
    notes: tuple[str, ...]
    numbers: tuple[BigNumber, ...]


def first_words(summary: Part, tables: Tables) -> FirstWords:
    first = lead(summary)
    sentence = _nothing(summary)
    if first:
        sentence = " ".join(filter(None, (_found(summary, tables, first), _effect_clause(summary, first))))
    return FirstWords(
        Sentence(sentence),
        (*_fixed_threshold(summary), *_readings(summary, tables)),
        tuple(_numbers(summary, tables, first)),
    )


def lead(summary: Part) -> Lead | None:
    """Of the first rule that selects some, those that list massive activations first; a rule with a scale stands in for
    one whose fixed threshold tells nothing. None where nothing stands out."""
    for name, rule in _telling(summary).items():
        dims = selected_dims(summary["populations"]["all"], name)
        if dims:
            return Lead(dims[0], rule)
    return None


def standing_out(summary: Part) -> list[int]:
    """The dims that the telling rules select in population all, the lead first."""
    part = summary["populations"]["all"]
    return [*dict.fromkeys(dim for name in _telling(summary) for dim in selected_dims(part, name))]


def _telling(summary: Part) -> dict[str, HitRule]:
    """The rules that select what stands out."""
    rules = {name: rule for name, rule in followed(summary["rules"]).items() if applied_sites(summary, name)}
    telling = {name: rule for name, rule in rules.items() if not _tells_nothing(summary, name)}
    return telling if telling == rules else {**telling, **_scaled(summary)}


def _tells_nothing(summary: Part, name: str) -> bool:
    rule, dims = run_rules(summary)[name], selected_dims(summary["populations"]["all"], name)
    fixed = isinstance(rule, Systematic) and rule.scale is None
    return fixed and len(dims) >= TELLS_NOTHING * summary["model"]["d_model"]


def _scaled(summary: Part) -> dict[str, HitRule]:
    """The rules of the residual stream that compare with a scale, followed up or not."""
    return {
        name: rule
        for name, rule in run_rules(summary).items()
        if rule.scale is not None and rule.basis == RESIDUAL and applied_sites(summary, name)
    }


# What was found.


def _found(summary: Part, tables: Tables, first: Lead) -> str:
    return _massive(summary, tables, first) if first.rule.lists_hits else _systematic(summary, first)


def _massive(summary: Part, tables: Tables, first: Lead) -> str:
    row = next(row for row in listed(summary, "all", first.rule.name)["dims"] if row["dim"] == first.dim)
    jumps = _jumps(tables.get("lifecycle"), first.dim, row["layer"])
    verb = "jumps to" if jumps else "reaches"
    if len(_tokens_of(tables["massive"], first)) > 1:
        verb += " as low as" if row["value"] < 0 else " as much as"
    at = _at(summary, tables["massive"], first)
    return f"{at}, dimension {dim_mark(first.dim)} {verb} {number(row['value'])} in layer {row['layer']}."


def _tokens_of(massive: pl.DataFrame, first: Lead) -> pl.DataFrame:
    """Sequence and token of its massive activations."""
    rows = massive.filter("massive_all", rule=first.rule.name, dim=first.dim)
    return rows.select("sequence", "token").unique()


def _at(summary: Part, massive: pl.DataFrame, first: Lead) -> str:
    """At which tokens the dim has massive activations: `At the first token of all 16 sequences`."""
    places = _tokens_of(massive, first)
    sequences, firsts = places["sequence"].n_unique(), len(places.filter(token=0))
    of = _of_sequences(sequences, summary["corpus"]["sequences"])
    if firsts == len(places):
        return f"At the first token of {of}"
    rest = f", {firsts:,} of them the first of a sequence" if firsts else f" in {of}"
    return f"At {count(len(places), 'token')}{rest}"


def _jumps(lifecycle: pl.DataFrame | None, dim: int, layer: int) -> bool:
    """Whether the layer adds at least half of what the dim has after it, at the traced token."""
    if lifecycle is None:
        return False
    parts = lifecycle.filter(target_dim=dim, layer=layer)
    values = dict(parts.filter(pl.col("part").is_in(["resid_pre", "resid_post"])).select("part", "value").iter_rows())
    if values.keys() < {"resid_pre", "resid_post"} or not values:
        return False
    return abs(values["resid_post"] - values["resid_pre"]) >= HALF * abs(values["resid_post"])


def _systematic(summary: Part, first: Lead) -> str:
    row = _row(summary, first)
    passing = _of_sequences(row["sequences_passing"], row["sequences"])
    return (
        f"Dimension {dim_mark(first.dim)} is an outlier in {passing}: {first.rule.reaches} at "
        f"{percent(row['union_mean'])} of the tokens and in {percent(row['blocks_mean'])} of the layers, on average."
    )


def _row(summary: Part, first: Lead) -> Part:
    rows = summary["populations"]["all"]["rules"][first.rule.name]["dims"]
    row: Part = next(row for row in rows if row["dim"] == first.dim)
    return row


def _of_sequences(some_of: int, sequences: int) -> str:
    if some_of == sequences:
        return {1: "the one sequence", 2: "both sequences"}.get(sequences, f"all {sequences:,} sequences")
    return f"{some_of:,} of {count(sequences, 'sequence')}"


def _nothing(summary: Part) -> str:
    rules, width = _telling(summary), summary["model"]["d_model"]
    if not rules:
        return "No rule could be applied: this run has none of their sites."
    sought = " or ".join(
        f"{f'has {rule.noun}s' if rule.lists_hits else f'is {with_article(rule.noun)}'} ({rule.criteria()})"
        for rule in rules.values()
    )
    value, where, ratio = _largest(summary)
    above = f", {number(ratio)} times the median there" if ratio else ""
    return (
        f"Nothing stands out: none of the {number(width)} dimensions {sought}. The largest value is {value} "
        f"({where}{above})."
    )


def _largest(summary: Part) -> tuple[str, str, float | None]:
    """The largest |x|, where it is, and how many times the median |x| around it it is."""
    value, where = largest(summary)
    sites = summary["populations"]["all"]["largest"]
    row = max(sites, key=lambda row: row["max"], default=None)
    return value, where, row["max"] / row["median"] if row and row["median"] else None


# What happens without it.


@dataclass(frozen=True)
class _Effect:
    """What setting the dim alone to zero does where that does most, and what its mean does there."""

    base: Part
    zero: Part
    mean: Part | None
    where: str  # at which positions


def _effect(summary: Part, first: Lead) -> _Effect | None:
    ablation = summary["ablation"]
    if not ablation:
        return None
    base, *effects = ablation["effects"]
    alone = [one for one in effects if one["target"] == "dims" and one["number"] == 1 and one["dims"] == str(first.dim)]
    zeros = [one for one in alone if one["value"] == "zero"]
    if not zeros or base["perplexity"] is None:
        return None
    zero = max(zeros, key=lambda one: float("inf") if one["ratio"] is None else one["ratio"])
    same = ("positions", "site", "rule")
    mean = next((one for one in alone if one["value"] == "mean" and all(one[k] == zero[k] for k in same)), None)
    where = position_name(zero["positions"], ablation["only_first_excluded"])
    return _Effect(base, zero, mean, where)


def _effect_clause(summary: Part, first: Lead) -> str:
    effect = _effect(summary, first)
    if effect is None:
        return ""
    before, after = in_words(effect.base["perplexity"]), effect.zero["perplexity"]
    without = "Without it" if effect.zero["positions"] in ("excluded", "all") else f"Without it at {effect.where},"
    if after is None:
        return f"{without} the model's predictions are no numbers any more."
    text = f"{without} {_called(effect.zero)} (perplexity {before} to {in_words(after)})"
    mean = effect.mean
    if mean is None or mean["perplexity"] is None or effect.zero["ratio"] < WORSE:
        return f"{text}."
    if abs(mean["ratio"] - 1) <= SAME:
        return f"{text}, with its mean over the same tokens nothing changes ({in_words(mean['perplexity'])})."
    return f"{text}, with its mean over the same tokens {_called(mean)} ({in_words(mean['perplexity'])})."


def _called(effect: Part) -> str:
    ratio = effect["ratio"]
    if ratio >= LOST:
        return "the model is lost"
    if ratio >= FAR_WORSE:
        return "the model predicts far worse"
    if ratio >= WORSE:
        return "the model predicts worse"
    return "the model predicts about as well" if ratio > 1 / WORSE else "the model predicts better"


def in_words(value: float) -> str:
    """A number to be read once: `31.04`, `3.9 million`."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= 1e15:
            break
        if value >= size:
            return f"{value / size:.2g} {name}" if value < 99.5 * size else f"{value / size:.0f} {name}"
    return number(value)


# What the answer hangs on.

_COUNTED = {"blocks": "one hit tensor makes a layer count", "sites_share": "each tensor counts by itself"}


def _fixed_threshold(summary: Part) -> Iterator[str]:
    width = summary["model"]["d_model"]
    for name in followed(summary["rules"]):
        if not applied_sites(summary, name) or not _tells_nothing(summary, name):
            continue
        rule, dims = run_rules(summary)[name], selected_dims(summary["populations"]["all"], name)
        scaled = [
            f"rule {other} ({SCALES[one.scale]}) {len(selected_dims(summary['populations']['all'], other)):,}"
            for other, one in _scaled(summary).items()
        ]
        instead = f" Against a scale the numbers are others: {listing(scaled)}." if scaled else ""
        yield (
            f"The fixed threshold {number(rule.threshold)} tells nothing here: {len(dims):,} of {number(width)} "
            f"dimensions pass rule {name}.{instead}"
        )


def _readings(summary: Part, tables: Tables) -> Iterator[str]:
    """A sentence for each rule that selects some by one reading of the layer share, and none by another."""
    rules = {name: rule for name, rule in followed(summary["rules"]).items() if applied_sites(summary, name)}
    for name, rule in of_kind(rules, Systematic).items():
        rows = tables["sensitivity"].filter(
            (pl.col("threshold") - rule.threshold).abs() < 1e-9,
            (pl.col("layer_share") - rule.layer_share).abs() < 1e-9,
            (pl.col("position_share") - rule.position_share).abs() < 1e-9,
            population="all",
            rule=name,
            position_reading=rule.position_reading,
        )
        pairs = {row["layer_reading"]: row["pairs"] for row in rows.iter_rows(named=True)}
        if len(pairs) == len(LAYER_READINGS) and min(pairs.values()) == 0 < max(pairs.values()):
            some_by, none_by = sorted(LAYER_READINGS, key=lambda reading: -pairs[reading])
            yield (
                f"What rule {name} finds hangs on how layers are counted: {count(pairs[some_by], 'pair')} of a "
                f"sequence and a dimension pass where {_COUNTED[some_by]} ({some_by}), none where {_COUNTED[none_by]} "
                f"({none_by}). This page counts by {rule.layer_reading}."
            )


# Four numbers.


def _numbers(summary: Part, tables: Tables, first: Lead | None) -> Iterator[BigNumber]:
    dims, width, rules = standing_out(summary), summary["model"]["d_model"], _telling(summary)
    by = f"by {rules_named(rules)}" if rules else "no rule was applied"
    which = f"{some([*map(dim_mark, dims)], 4)}, " if dims else ""
    yield BigNumber(f"{len(dims):,} of {number(width)}", "dimensions stand out", Sentence(f"{which}{by}"))
    if first and first.rule.lists_hits:
        row = next(row for row in listed(summary, "all", first.rule.name)["dims"] if row["dim"] == first.dim)
        around = f"{number(row['ratio'])} times the median size in that layer, {number(row['median'])}"
        yield BigNumber(number(row["value"]), Sentence(f"largest value of dimension {dim_mark(first.dim)}"), around)
        tokens = _tokens_of(tables["massive"], first)
        of = f"{tokens['sequence'].n_unique():,} of {summary['corpus']['sequences']:,}"
        has = f"{first.rule.noun}s of dimension {dim_mark(first.dim)}, at {count(len(tokens), 'token')}"
        yield BigNumber(of, "sequences have it", Sentence(has))
    else:
        value, where, ratio = _largest(summary)
        yield BigNumber(value, "largest value of all", where)
        if first:
            row = _row(summary, first)
            told = Sentence(
                f"of dimension {dim_mark(first.dim)}: {first.rule.reaches} somewhere in the model, "
                "on average over sequences"
            )
            yield BigNumber(percent(row["union_mean"]), "of the tokens are outliers", told)
        else:
            yield BigNumber(DASH if ratio is None else f"× {number(ratio)}", "the median size around it", where)
    yield _effect_number(summary, first)


def _effect_number(summary: Part, first: Lead | None) -> BigNumber:
    effect = _effect(summary, first) if first else None
    loss = summary["loss"]
    if effect and first:
        whole = f"; the unchanged model has {number(loss['perplexity'])} on all the text" if loss else ""
        ratio, after = effect.zero["ratio"], effect.zero["perplexity"]
        change = number(effect.base["perplexity"]) + (f" to {in_words(after)}" if after is not None else "")
        sample = ablation_sample(summary["ablation"])
        return BigNumber(
            "no number" if ratio is None else f"× {in_words(ratio)}",
            Sentence(f"perplexity without dimension {dim_mark(first.dim)}"),
            f"{change} with zero in its place at {effect.where}, over the {sample}{whole}",
        )
    if loss:
        return BigNumber(number(loss["perplexity"]), "perplexity", f"over {count(loss['tokens'], 'predicted token')}")
    if is_dump(summary):
        return BigNumber(DASH, "perplexity", "a dump has no model that predicts")
    why = summary["missing"].get("loss", {"reason": "no token has one before it"})["reason"]
    return BigNumber(DASH, "perplexity", capital(str(why)))
