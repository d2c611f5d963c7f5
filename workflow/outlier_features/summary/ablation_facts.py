"""What ablations and the search for super weights showed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from outlier_features.ablate.ablation_effects import ablation_sample, position_name, target_name
from outlier_features.dim_marks import dim_mark, marked_of
from outlier_features.rules.super_expert import SuperExpert
from outlier_features.rules.super_weight import SuperWeight
from outlier_features.summary.fact import Fact, Topic
from outlier_features.summary.run_rules import rule_of
from outlier_features.visible_text import visible
from outlier_features.wording import capital, count, layers, listing, number, percent, some, span

Part = Mapping[str, Any]
WEIGHTS_IN_FULL = 6
_NOUNS = {"weight": "weight", "expert": "expert"}


def super_weight_facts(search: Part, rules: Part) -> Iterator[Fact]:
    """The search, each of its first weights, what was not searched, and what was published of the model."""
    rule = rule_of(rules, SuperWeight)
    weights, first = search["found"], f"the first {count(search['tokens'], 'token')} of sequence 0, all of them"
    topic: Topic = "found" if weights else "not found"
    text = f"Rule {rule.name} ({rule.criteria()}) finds no {rule.noun} over {first}: in no layer do both spike."
    if weights:
        limit = len(weights) >= search["rounds"]
        end = (
            f"it stopped at its limit of {count(search['rounds'], 'round')}" if limit else "no other layer spikes then"
        )
        text = (
            f"Rule {rule.name} ({rule.criteria()}) finds {count(len(weights), rule.noun)} over {first}, one a round, "
            f"the earliest layer first, each set to zero for the rounds that follow; {end}. The rule only asks "
            "that a weight joins two spikes: its ablation shows what it is worth."
        )
    more = weights[WEIGHTS_IN_FULL:]
    lines = [
        *map(_weight, weights[:WEIGHTS_IN_FULL]),
        *([f"And {len(more)} more, in {layers([row['layer'] for row in more])}."] if more else []),
        *(f"Not searched: {layers(indices)} ({visible(why)})." for why, indices in search["not_searched"].items()),
        _published(search),
    ]
    parts = tuple(Fact(what="super weight", topic=topic, short=line) for line in lines)
    yield Fact(what="super weights", topic=topic, short=text, rule=rule.name, values=search, parts=parts)


def _weight(row: Part) -> str:
    return (
        f"Round {row['round']}: layer {row['layer']}, W_down[{dim_mark(row['row'])}, {row['col']}] = "
        f"{number(row['value'])}; mlp_act {number(row['mlp_act'])} in neuron {row['col']} at position "
        f"{row['mlp_act_token']}, mlp_down {number(row['mlp_down'])} in dimension {dim_mark(row['row'])} at position "
        f"{row['mlp_down_token']}."
    )


def _published(search: Part) -> str:
    if not search["published"]:
        return "For this model no published super weights are known, to compare with."
    here = {(row["layer"], row["row"], row["col"]) for row in search["found"]}
    printed = list(dict.fromkeys((row["layer"], row["row"], row["col"]) for row in search["published"]))
    names = listing(sorted({visible(row["hub_id"]) for row in search["published"]}))
    both, others = (
        some([f"{layer}: [{row}, {col}]" for layer, row, col in printed if ((layer, row, col) in here) == known])
        for known in (True, False)
    )
    return (
        f"Of {len(printed)} published for {names}, as layer: [row, column], found here: {both or 'none'}; not found "
        f"here: {others or 'none'}."
    )


def ablation_facts(ablation: Part, loss: Part | None) -> Iterator[Fact]:
    """The unchanged model, and for each target what zeros in it do where they do most; of a dim alone the worst leads.

    The report's table of ablations has every other outcome.

    loss   of the run, where it has one
    """
    base, *effects = ablation["effects"]
    text = (
        f"Over the {ablation_sample(ablation)} ({count(base['tokens'], 'predicted token')}) the unchanged model has "
        f"perplexity {number(base['perplexity'])} ({span(base['sequences'])} in single sequences) and mean top-1 "
        f"probability {percent(base['top1_probability'])}.{beside_the_run(loss)}"
    )
    if not effects:
        text += f" {nothing_to_ablate(ablation)}, so nothing was ablated."
    targets: dict[tuple[str, str], list[Part]] = {}
    for effect in effects:
        targets.setdefault((target_name(effect), effect["rule"]), []).append(effect)
    worst = {target: max(treated, key=harm) for target, treated in targets.items()}
    # Of the targets that are one dim, the one that does most harm to each.
    leading: dict[str, tuple[str, str]] = {}
    for target in sorted(worst, key=lambda target: harm(worst[target])):
        if worst[target]["target"] == "dims" and worst[target]["number"] == 1:
            leading[worst[target]["dims"]] = target
    parts = (
        _fact(ablation, target, treated, worst[target], leading=target in leading.values())
        for target, treated in targets.items()
    )
    yield Fact(what="ablation", topic="effect", short=text, values=base, parts=tuple(parts))


def beside_the_run(loss: Part | None) -> str:
    """A sentence on why the perplexity of a sample is not the run's, of whose tokens it is a part."""
    if loss is None:
        return ""
    return (
        f" Over all of the run's {count(loss['tokens'], 'predicted token')} it is {number(loss['perplexity'])}: the "
        "sample is a part of them."
    )


def pruning_facts(pruning: Part, rules: Part, loss: Part | None) -> Iterator[Fact]:
    """What the model loses with its super experts; of a model with experts but no super expert that nothing was pruned.

    pruning   `expert_ablation` of summary.json
    loss      of the run, where it has one
    """
    if not pruning["effects"]:
        if pruning["has_experts"]:
            text = f"There is no {rule_of(rules, SuperExpert).noun} to prune, so the loss without any was not measured."
            yield Fact(what="pruning", topic="not found", short=text, sites="expert_out")
        return
    base, *effects = pruning["effects"]
    text = (
        f"Over the {ablation_sample(pruning)} the unchanged model has perplexity {number(base['perplexity'])}; without "
        f"an expert its weight is set to zero, and the router chooses as ever.{beside_the_run(loss)}"
    )
    parts = (_fact(pruning, (target_name(one), one["rule"]), [one], one, leading=False) for one in effects)
    yield Fact(what="pruning", topic="effect", short=text, values=base, parts=tuple(parts))


def nothing_to_ablate(ablation: Part) -> str:
    """Why an ablation has the unchanged model alone."""
    weights = "no super weight was found" if ablation["weights_searched"] else "super weights were not searched"
    return f"No dimension is selected by a rule whose dimensions are ablated over all tokens, and {weights}"


def harm(effect: Part) -> float:
    """How many times the perplexity grows; not to be finite is the worst. Means are told beside the worst zeros."""
    if effect["value"] != "zero":
        return -1.0
    return math.inf if effect["ratio"] is None else float(effect["ratio"])


def _fact(ablation: Part, target: tuple[str, str], treated: Sequence[Part], worst: Part, *, leading: bool) -> Fact:
    name, rule = marked_of(target[0]), target[1]
    alone = worst["target"] == "dims" and worst["number"] == 1
    text = _outcome(ablation, treated, worst)
    return Fact(
        what="ablated",
        topic="effect",
        short=f"Perplexity {text}",
        full=f"{capital(name)} (rule {rule}): perplexity {text}",
        rule=rule,
        sites=f"{name}, {ablation_sample(ablation)}",
        dim=int(worst["dims"]) if alone else None,
        values={"effects": treated},
        leading=leading,
    )


def _outcome(ablation: Part, treated: Sequence[Part], worst: Part) -> str:
    where, base = position_name(worst["positions"], ablation["only_first_excluded"]), ablation["effects"][0]
    mean = "".join(
        f", and to {_perplexity(effect)} when set to the mean there"
        for effect in treated
        if effect["value"] == "mean" and effect["positions"] == worst["positions"]
    )
    text = f"goes from {number(base['perplexity'])} to {_perplexity(worst)} when set to zero at {where}{mean}."
    if worst["random"]:
        noun = count(worst["number"], f"random {_NOUNS.get(worst['target'], 'dimension')}")
        noun += " of the same layers" if worst["target"] == "expert" else ""
        text += f" With {noun} set to zero alike, {count(len(worst['random']), 'draw')}: "
        text += f"{span(draw['perplexity'] for draw in worst['random'])}."
    return text


def _perplexity(effect: Part) -> str:
    if effect["perplexity"] is None:
        return "a value that is not finite"
    times = "" if effect["ratio"] is None else f" ({number(effect['ratio'])} times)"
    return f"{number(effect['perplexity'])}{times}"
