"""A run in short: what it looked for, what stands out, and what is known of each dim that does, in plain words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlier_features.dim_marks import Sentence, dim_mark
from outlier_features.model.bases import RESIDUAL
from outlier_features.rules.kinds import followed
from outlier_features.rules.rule import HitRule
from outlier_features.summary.fact import Fact
from outlier_features.summary.facts import is_dump
from outlier_features.summary.glossary import WHY_THEY_MATTER, explained
from outlier_features.summary.hybrid import hybrid_sentence
from outlier_features.summary.run_rules import applied_sites, run_rules, selected_dims
from outlier_features.visible_text import visible
from outlier_features.wording import DASH, count, listing, number, rules_named, some, with_article

Part = Mapping[str, Any]
MAX_PROFILES = 4
RULES_IN_PROFILE = 2


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


def in_short(summary: Part, facts: Sequence[Fact]) -> InShort:
    """The run's first words, from its summary and the leading ones of its `facts`."""
    rules = {name: rule for name, rule in followed(summary["rules"]).items() if applied_sites(summary, name)}
    dims = [
        *dict.fromkeys(
            dim for rule in rules for part in summary["populations"].values() for dim in selected_dims(part, rule)
        )
    ]
    leading = [fact for one in facts for fact in one.flat if fact.leading]
    return InShort(
        _lead(summary),
        tuple(map(Sentence, _answer(summary, rules, dims))),
        tuple(_profile(dim, rules, leading) for dim in dims[:MAX_PROFILES]),
        len(dims[MAX_PROFILES:]),
    )


def _carried(rule: HitRule) -> str:
    """What a dim that the rule selects has, or is."""
    return f"{rule.noun}s" if rule.lists_hits else with_article(rule.noun)


def _lead(summary: Part) -> str:
    model = summary["model"]
    carrier = "the model behind this dump" if is_dump(summary) else model["name"]
    looked_for = {rule.noun: explained(rule.noun) or rule.meaning() for rule in followed(summary["rules"]).values()}
    return " ".join(
        [
            f"Between its {count(model['blocks'], 'layer')}, {carrier} holds each token as {number(model['d_model'])} "
            "numbers, its hidden dimensions. In most trained transformers a few of them are far larger than the rest.",
            *filter(None, [hybrid_sentence(model)]),
            *looked_for.values(),
            WHY_THEY_MATTER,
        ]
    )


def _answer(summary: Part, rules: Mapping[str, HitRule], dims: list[int]) -> Iterator[str]:
    corpus, populations = summary["corpus"], summary["populations"]
    text = (
        f"In {count(corpus['sequences'], 'sequence')} of {count(corpus['sample']['tokens'], 'token')}, "
        f"{rules_named(rules, 'select')}"
    )
    width = number(summary["model"]["d_model"])
    if not rules:
        yield "No rule could be applied: this run has none of their sites."
    elif not dims:
        yield f"{text} no dimension of {width}, in any population."
    else:
        named = some([*map(dim_mark, dims)])
        yield f"{text} {count(len(dims), 'dimension')} of {width}, in one population or another: {named}."
    for name, rule in run_rules(summary).items():
        others = {dim for part in populations.values() for dim in selected_dims(part, name)}
        if others and rule.follow_up and rule.basis != RESIDUAL:
            yield (
                f"On {listing(applied_sites(summary, name))}, whose dimensions are another basis, rule {name} selects "
                f"{count(len(others), 'dimension')}."
            )
    if dims and "without_first" in populations:
        left = listing(
            f"{count(len(selected_dims(populations['without_first'], rule)), 'dimension')} by {rule}" for rule in rules
        )
        yield (
            f"Without the first position of each sequence and special tokens: {left}."
            if corpus["positions"]["without_first"]
            else "The sequences have no positions but the first and special tokens."
        )


def largest(summary: Part) -> tuple[str, str]:
    """The largest |x| in population all, and its site and layer."""
    sites = summary["populations"]["all"]["largest"]
    if not sites:
        return DASH, "no site in this run"
    row = max(sites, key=lambda row: row["max"])
    return number(row["max"]), f"{visible(row['site'])}, layer {row['layer']}"


def _profile(dim: int, rules: Mapping[str, HitRule], leading: Sequence[Fact]) -> Profile:
    """Of each rule the first population in which it selects the dim; what further rules say stands in the findings."""
    of_dim = [fact for fact in leading if fact.dim == dim]
    first = {fact.rule: fact for fact in reversed(of_dim) if fact.what == "dim"}
    by_rule = [first[rule] for rule in rules if rule in first]
    also = [fact.rule for fact in by_rule[RULES_IN_PROFILE:]]
    more = Fact(what="also", topic="found", dim=dim, short=f"Rules {listing(also)} select it too." if also else "")
    facts = [*by_rule[:RULES_IN_PROFILE], *([more] if also else []), *(fact for fact in of_dim if fact.what != "dim")]
    what = dict.fromkeys(_carried(rules[fact.rule]) for fact in by_rule)
    return Profile(dim, listing(what), tuple(facts))
