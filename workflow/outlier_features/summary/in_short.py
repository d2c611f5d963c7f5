"""A run in short: what it looked for, what stands out, and what is known of each dim that does, in plain words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from outlier_features.ablate.ablation_effects import position_name, target_name
from outlier_features.model.bases import RESIDUAL
from outlier_features.origin.origin_findings import lifecycle_sentences
from outlier_features.rules.kinds import followed
from outlier_features.rules.rule import SCALES, HitRule
from outlier_features.summary.findings import is_dump
from outlier_features.summary.run_rules import applied_sites, listed, run_rules
from outlier_features.visible_text import quoted
from outlier_features.wording import count, layers, listing, number, percent

Part = Mapping[str, Any]
MAX_PROFILES = 4


@dataclass(frozen=True)
class Fact:
    """A sentence, and the site, rule and population that its numbers stand on."""

    text: str
    where: str


@dataclass(frozen=True)
class Profile:
    """What is known of a dim: `what` it carries, and facts."""

    dim: int
    what: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class InShort:
    """`lead` says what was looked for, `answer` what was found; the largest dims have profiles, `more` have none."""

    lead: str
    answer: tuple[str, ...]
    profiles: tuple[Profile, ...]
    more: int


def in_short(summary: Part, lifecycle: pl.DataFrame | None) -> InShort:
    """The run's first words, from its summary and, where dims were traced, `lifecycle`."""
    dims = _dims(summary)
    profiles = [_profile(summary, dim, lifecycle) for dim in dims[:MAX_PROFILES]]
    return InShort(_lead(summary), tuple(_answer(summary, dims)), tuple(profiles), len(dims[MAX_PROFILES:]))


def _rows(summary: Part, rule: str, population: str) -> dict[int, Part]:
    result = summary["populations"].get(population, {"rules": {}})["rules"].get(rule)
    return {row["dim"]: row for row in result["dims"]} if result else {}


def _by_population(summary: Part, rule: str, dim: int) -> dict[str, Part]:
    """The dim's row in each population in which the rule selects it."""
    found = {population: _rows(summary, rule, population).get(dim) for population in summary["populations"]}
    return {population: row for population, row in found.items() if row}


def _dims(summary: Part) -> list[int]:
    """Those that a rule selects in any population; by a rule that lists its hits first, the largest first."""
    found: dict[int, None] = {}
    for rule in followed(summary["rules"]):
        for population in summary["populations"]:
            found |= dict.fromkeys(_rows(summary, rule, population))
    return list(found)


def _lead(summary: Part) -> str:
    model = summary["model"]
    carrier = "the model behind this dump" if is_dump(summary) else model["name"]
    return (
        f"Between its {count(model['blocks'], 'layer')}, {carrier} holds each token as {number(model['d_model'])} "
        "numbers, its hidden dimensions. In most trained transformers a few of them are far larger than the rest. An "
        "outlier feature is a dimension that is large in many layers and at many tokens; a massive activation is a "
        "single value that is thousands of times larger than those around it, usually at a few tokens only. Both "
        "matter to whoever rounds activations to few bits, since one such value stretches the scale that others must "
        "share (Dettmers et al. 2022, Sun et al. 2024)."
    )


def _answer(summary: Part, dims: list[int]) -> Iterator[str]:
    corpus, model = summary["corpus"], summary["model"]
    text = f"{count(corpus['sequences'], 'sequence')} of {count(corpus['sample']['tokens'], 'token')}"
    applied = [rule for rule in followed(summary["rules"]) if applied_sites(summary, rule)]
    if not applied:
        yield "No rule could be applied: this run has none of their sites."
        return
    by = f"by rule {' or '.join(applied)}, in any population"
    if not dims:
        yield f"In {text}, no dimension of {number(model['d_model'])} stands out {by}."
    else:
        names = listing([*dims[:8], *([f"{len(dims) - 8:,} more"] if len(dims) > 8 else [])])
        verb = "stands" if len(dims) == 1 else "stand"
        yield (f"In {text}, {count(len(dims), 'dimension')} of {number(model['d_model'])} {verb} out {by}: {names}.")
    for name, rule in run_rules(summary).items():
        others = {dim for population in summary["populations"] for dim in _rows(summary, name, population)}
        if others and rule.follow_up and rule.basis != RESIDUAL:
            yield (
                f"On {listing(applied_sites(summary, name))}, whose dimensions are another basis, rule {name} selects "
                f"{count(len(others), 'dimension')}."
            )
    if dims and "without_first" in summary["populations"]:
        yield _without_first(summary, applied)


def _without_first(summary: Part, applied: list[str]) -> str:
    if not summary["corpus"]["positions"]["without_first"]:
        return "The sequences have no positions but the first and special tokens."
    left = [
        f"{count(len(found), 'dimension') if found else 'none'} by rule {rule}"
        for rule in applied
        for found in [_rows(summary, rule, "without_first")]
    ]
    return f"Without the first position of each sequence and special tokens: {listing(left)}."


def _profile(summary: Part, dim: int, lifecycle: pl.DataFrame | None) -> Profile:
    rules = followed(summary["rules"])
    by_rule = {rule: found for rule in rules if (found := _by_population(summary, rule, dim))}
    facts = [
        *(fact for name, rows in by_rule.items() for fact in _of_rule(summary, dim, rules[name], rows)),
        *_origin(dim, lifecycle),
        *_effect(summary["ablation"], dim),
    ]
    return Profile(dim, listing(dict.fromkeys(_carried(rules[name]) for name in by_rule)), tuple(facts))


def _where(summary: Part, rule: str, population: str) -> str:
    return f"{' + '.join(applied_sites(summary, rule))}; rule {rule}; population {population}"


def _carried(rule: HitRule) -> str:
    if rule.lists_hits:
        return f"{rule.noun}s"
    return f"{'an' if rule.noun[0] in 'aeiou' else 'a'} {rule.noun}"


def _of_rule(summary: Part, dim: int, rule: HitRule, rows: Mapping[str, Part]) -> Iterator[Fact]:
    """`rows` of the populations in which the rule selects the dim, `all` before `without_first`."""
    if rule.lists_hits:
        yield from _massive(summary, dim, rule, rows)
    else:
        yield from _outlier(summary, rule, rows)


def _massive(summary: Part, dim: int, rule: HitRule, rows: Mapping[str, Part]) -> Iterator[Fact]:
    population, row = next(iter(rows.items()))
    found = listed(summary, population, rule.name)
    (largest,) = (one for one in found["dims"] if one["dim"] == dim)
    token = f", the token {quoted(largest['token_text'])}" if largest["token_text"] else ""
    yield Fact(
        f"Its value reaches {number(largest['value'])} in layer {largest['layer']}, {number(largest['ratio'])} times "
        f"the median |x| there, at position {largest['token']}{token}. It is massive in {row['sequences_passing']:,} "
        f"of {count(summary['corpus']['sequences'], 'sequence')}, within "
        f"{layers(range(row['first_layer'], row['last_layer'] + 1))}."
        + (
            _elsewhere(summary, rows, "It is never massive outside the first position and special tokens.")
            # The medians of population without_first are others, so that it selects none does not say this.
            if found["at_excluded_positions"] == found["activations"]
            else ""
        ),
        _where(summary, rule.name, population),
    )


def _outlier(summary: Part, rule: HitRule, rows: Mapping[str, Part]) -> Iterator[Fact]:
    population, row = next(iter(rows.items()))
    yield Fact(
        f"{SCALES[rule.scale]} is {number(rule.threshold)} or more at {percent(row['union_mean'])} of the "
        f"positions and in {percent(row['blocks_mean'])} of the layers (within "
        f"{layers(range(row['first_layer'], row['last_layer'] + 1))}), on average over the sequences where it is so at "
        f"all; {row['sequences_passing']:,} of {count(summary['corpus']['sequences'], 'sequence')} pass. The largest "
        f"is {number(row['max_abs'])}."
        + _elsewhere(summary, rows, "Without the first position and special tokens it does not pass."),
        _where(summary, rule.name, population),
    )


def _elsewhere(summary: Part, rows: Mapping[str, Part], none: str) -> str:
    """`none` where the dim is selected in population all only, of two."""
    return f" {none}" if summary["corpus"]["positions"].get("without_first") and list(rows) == ["all"] else ""


def _origin(dim: int, lifecycle: pl.DataFrame | None) -> Iterator[Fact]:
    life = None if lifecycle is None else lifecycle.filter(target_dim=dim)
    if life is None or life.is_empty():
        return
    yield Fact(" ".join(lifecycle_sentences(life)), "resid_post and its parts; rule trace_origin; at that one token")


def _effect(ablation: Part | None, dim: int) -> Iterator[Fact]:
    """Of the ablations of this dim alone the one whose zero does most, with its mean beside it."""
    if not ablation:
        return
    base, *effects = ablation["effects"]
    alone = [
        effect
        for effect in effects
        if effect["target"] == "dims" and effect["dims"] == str(dim) and effect["ratio"] is not None
    ]
    zeros = [effect for effect in alone if effect["value"] == "zero"]
    if not zeros:
        return
    zero = max(zeros, key=lambda effect: effect["ratio"])
    same = ("site", "layers", "positions", "rule")
    means = [effect for effect in alone if effect["value"] == "mean" and all(effect[k] == zero[k] for k in same)]
    mean = f", and to {number(means[0]['perplexity'])} when it is set to its mean" if means else ""
    positions = position_name(zero["positions"], ablation["only_first_excluded"])
    draws = [draw["perplexity"] for draw in zero["random"] if draw["perplexity"] is not None]
    random = f" Random dimensions set to zero alike: at most {number(max(draws))}." if draws else ""
    yield Fact(
        f"Perplexity goes from {number(base['perplexity'])} to {number(zero['perplexity'])} when it is set to zero "
        f"at {positions}{mean}.{random}",
        f"{target_name(zero)}; rule {zero['rule']}; the first {count(ablation['tokens'], 'token')} of "
        f"{count(ablation['sequences'], 'sequence')}",
    )
