"""What a mixture of experts showed: which experts make massive activations, and how even its routers are."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from outlier_features.dim_marks import dim_mark
from outlier_features.rules.rule import Rule
from outlier_features.rules.super_expert import SuperExpert
from outlier_features.summary.fact import Fact, Topic, rest
from outlier_features.summary.run_rules import rule_of
from outlier_features.visible_text import place
from outlier_features.wording import capital, count, layers, number, percent, some, span

Part = Mapping[str, Any]
IN_FULL = 4


def expert_facts(experts: Part | None, rules: Part) -> Iterator[Fact]:
    """From `experts_summary`; none of a model without experts."""
    if experts is None:
        return
    rule = rule_of(rules, SuperExpert)

    def fact(rows: Sequence[Part], text: str, lines: Iterable[str] = (), more: Sequence[str] = ()) -> Fact:
        topic: Topic = "found" if rows else "not found"
        parts = [Fact(what="expert", topic=topic, short=line) for line in lines]
        return Fact(what="experts", topic=topic, short=text, rule=rule.name, sites="expert_out", population="all",
                    parts=(*parts, *rest(more, "dimension-layer pair", topic)))  # fmt: skip

    super_experts, parts = experts["super_experts"], experts["routing"]
    yield fact(super_experts, _super_experts(rule, experts), map(_super_expert, super_experts[:IN_FULL]))
    if parts:
        text = (
            f"The experts of {layers(experts['forming'])} form massive activations. The largest part of each, at the "
            "dimension's largest massive activation:"
        )
        more = [f"{dim_mark(row['dim'])} in layer {row['layer']}" for row in parts[IN_FULL:]]
        yield fact(parts, text, map(_formed, parts[:IN_FULL]), more)
    for population, layers_of in experts["balance"].items():
        if text := _balance(layers_of):
            yield Fact(what="routers", topic="found", short=text, sites="the routers' choices", population=population)
    if experts["published"] is not None:
        same = [row for row in experts["published"] if row["super_expert"]]
        text = (
            f"Published as super experts of this model ({rule.source}): {_some(experts['published'])}. Found "
            f"here, of these {len(experts['published'])}: {_some(same)}."
        )
        yield fact(same, text)


def _super_experts(rule: Rule, experts: Part) -> str:
    rows, by_code, elsewhere = (experts[name] for name in ("super_experts", "by_code", "elsewhere"))
    text = (
        f"Rule {rule.name} ({rule.criteria()}) finds {count(len(rows), rule.noun) if rows else f'no {rule.noun}'} "
        f"among {count(experts['routed'], 'routed expert')} ({experts['never_chosen']:,} of them never chosen) and "
        f"{count(experts['shared'], 'shared one')} in {layers(experts['layers'])}, over "
        f"{count(experts['sequences'], 'sequence')} (site expert_out, all positions)"
    )
    if rows:
        text += f": {_some(rows)}"
    elif not experts["forming"]:
        text += ": no layer with experts forms a massive activation"
    text += "."
    if elsewhere:
        early = sum(row["first_three_quarters_code"] for row in elsewhere)
        text += (
            f" As large, but in layers that form no massive activation: {_some(elsewhere)}; {early:,} of "
            f"{len(elsewhere):,} in the first three quarters of the layers, as the published code requires."
        )
    if {*map(_named, rows)} != {*map(_named, by_code)}:
        text += (
            " The authors' code, which ranks only the experts of the first three quarters of the layers "
            f"(super_expert_code), would find {_some(by_code)}."
        )
    return text


def _balance(rows: Sequence[Part]) -> str:
    """Of a population the least and the most even router; nothing where it has no positions."""
    known = [row for row in rows if row["entropy"] is not None]
    if not known:
        return ""
    least, most = (pick(known, key=lambda row: row["entropy"]) for pick in (min, max))
    return (
        f"A position chooses {span(row['experts_per_position'] for row in known)} of "
        f"{span(row['experts'] for row in known)} experts. The router of layer {least['layer']} is the least even: "
        f"entropy {number(least['entropy'])} (1 if all experts were chosen alike), its expert "
        f"{least['largest_expert']} is chosen {number(least['largest_load'])} times as often as on average, and "
        f"{count(least['never_chosen'], 'expert')} never. The most even is that of layer {most['layer']}: entropy "
        f"{number(most['entropy'])}."
    )


def _named(row: Part) -> str:
    name = "the shared expert" if row["part"] == "shared" else f"expert {row['expert']}"
    return f"{name} of layer {row['layer']}"


def _some(rows: Sequence[Part]) -> str:
    return some([*map(_named, rows)], IN_FULL) or "none"


def _super_expert(row: Part) -> str:
    return (
        f"{capital(_named(row))} writes up to |x| = {number(row['max_abs'])} in dimension {dim_mark(row['dim'])} at "
        f"{place(row['sequence'], row['token'], None)}, {number(row['max_abs_weighted'])} after its weight. "
        f"{count(row['tokens_routed'], 'position')} went through it, with mean weight {number(row['mean_weight'])}"
        + (
            "."
            if row["max_abs_input"] is None
            else f"; its down projection reads up to {number(row['max_abs_input'])}, in neuron {row['neuron']}."
        )
    )


def _formed(row: Part) -> str:
    return (
        f"Dimension {dim_mark(row['dim'])} has x = {number(row['activation'])} at "
        f"{place(row['sequence'], row['token'], row['token_text'])}, to which layer {row['layer']} adds "
        f"{number(row['mlp_out'])}. {percent(row['share'])} of it is from {_named(row)} (weight "
        f"{number(row['weight'])}), the largest of {count(row['parts'], 'part')}."
    )
