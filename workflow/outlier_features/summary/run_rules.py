"""The rules of a run, by its summary: which select by hits, and at which of their sites they could be applied."""

from collections.abc import Mapping
from typing import Any

from outlier_features.model.bases import RESIDUAL
from outlier_features.rules.kinds import applied_sites as sites_of_run
from outlier_features.rules.kinds import hit_rules, rules_of
from outlier_features.rules.rule import HitRule, Rule

Part = Mapping[str, Any]


def run_rules(summary: Part) -> dict[str, HitRule]:
    """Every rule that selects by hits, applied or not."""
    return hit_rules(summary["rules"])


def rule_of(rules: Part, kind: type[Rule]) -> Rule:
    """The one rule of a kind that a stage of its own applies, in a run whose stage ran."""
    return next(rule for rule in rules_of(rules).values() if rule.kind == kind.kind)


def applied_sites(summary: Part, rule: str) -> list[str]:
    """The sites of a rule that the run has."""
    sites = summary["sites"]
    run = {"sites": sites["present"], "without_scale": sites.get("without_scale", {})}
    return sites_of_run(run_rules(summary)[rule], run)


def main_rules(summary: Part) -> dict[str, HitRule]:
    """The followed rules of the residual stream, applied or not: those that tables and figures of dims show."""
    return {name: rule for name, rule in run_rules(summary).items() if rule.follow_up and rule.basis == RESIDUAL}


def listed(summary: Part, population: str, rule: str) -> Part:
    """What a rule that lists its hits has of them in a population."""
    result = summary["populations"][population]["rules"][rule]
    activations: Part = result["massive_activations"]
    return activations


def selected_dims(population: Part, rule: str) -> list[int]:
    """The dims that a rule selects in a population, a part of `summary["populations"]`; the largest first."""
    return [row["dim"] for row in population["rules"].get(rule, {"dims": []})["dims"]]
