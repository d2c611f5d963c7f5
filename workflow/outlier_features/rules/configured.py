"""The rules of a configuration: defaults, what each key must be, and which of the run's sites and hits they need."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from math import inf
from typing import Any

from outlier_features.errors import InputError
from outlier_features.model.bases import NORM_OUTPUTS
from outlier_features.rules.kinds import hit_rules, kinds, rules_of
from outlier_features.rules.rule import SMALLEST_SCALED
from outlier_features.rules.systematic import Systematic

_TYPICAL = 6.0  # the threshold that the numbers of `sensitivity.thresholds` stand around
Rules = Mapping[str, Mapping[str, Any]]


def complete_rules(own: Mapping[str, Any], standard: Rules) -> dict[str, dict[str, Any]]:
    """The rules by name, those that are off left out: `own` ones, and the `standard` ones that these do not turn off.

    An entry takes the keys that it lacks from the standard one of its name, if that is of the same kind, and from the
    rule that it is `like`. Raises `InputError` where it is no mapping, or its kind is missing or unknown.
    """
    entries = {**standard, **own}
    for name, entry in entries.items():
        if entry is not None and entry is not False and not isinstance(entry, Mapping):
            raise InputError(f"config: rules.{name} is {entry!r}, expected a mapping, or off (false)")
    on = [name for name, entry in entries.items() if isinstance(entry, Mapping)]
    return {name: _completed(name, entries, standard, ()) for name in on}


def _completed(name: str, entries: Rules, standard: Rules, before: tuple[str, ...]) -> dict[str, Any]:
    entry = dict(entries[name] or standard.get(name, {}))  # one that is off may still be a model for others
    own = standard.get(name, {})
    if "kind" not in entry or entry["kind"] == own.get("kind"):
        entry = {**own, **entry}
    if "like" in entry:
        model = entry.pop("like")
        if not isinstance(model, str) or model not in entries or model in (*before, name):
            raise InputError(f"config: rules.{name}.like is {model!r}, expected the name of another rule")
        entry = {**_completed(model, entries, standard, (*before, name)), **entry}
    if "kind" not in entry:
        nearest = get_close_matches(name, standard, 1)
        hint = f", or did you mean {nearest[0]!r}" if nearest else ""
        raise InputError(f"config: rules.{name} lacks the key 'kind', expected one of {', '.join(kinds())}{hint}")
    if entry["kind"] not in [*kinds()]:  # which may be a list, and then has no hash
        raise InputError(f"config: rules.{name}.kind is {entry['kind']!r}, expected one of {', '.join(kinds())}")
    return entry


def rules_schema(rules: Rules) -> dict[str, Any]:
    """JSON Schema of the key `rules`, for complete rules of these names and kinds."""
    return {"type": "object", "properties": {name: kinds()[entry["kind"]].schema() for name, entry in rules.items()}}


def own_keys_schema(rules: Rules) -> dict[str, Any]:
    """JSON Schema of the key `rules` as it was written, so that a mistake is found where it stands."""
    entries = {}
    for name, complete in rules_schema(rules)["properties"].items():
        properties = {**complete["properties"], "like": {"type": "string"}}
        entries[name] = {"type": ["object", "boolean", "null"], "additionalProperties": False, "properties": properties}
    return {"type": "object", "properties": entries}


def set_sensitivity(rules: Rules, thresholds: Sequence[float]) -> dict[str, dict[str, Any]]:
    """`rules` with the thresholds of the sensitivity table in the place of null, see `Systematic.sensitivity`."""
    found = {name: dict(entry) for name, entry in rules.items()}
    for entry in found.values():
        if entry["kind"] == Systematic.kind and entry["sensitivity"] is None:
            known = entry["scale"] is not None or {*entry["sites"]} <= {*NORM_OUTPUTS, "attn_heads"}
            ratio = 1.0 if known else entry["threshold"] / _TYPICAL
            least = 0.0 if entry["scale"] is None else SMALLEST_SCALED
            entry["sensitivity"] = [float(f"{one * ratio:.6g}") for one in thresholds if one >= least]
    return found


def the_rule(rules: Rules, kind: str) -> dict[str, Any] | None:
    """The one rule of a kind that a stage of its own applies: its `name` and parameters. None if it is off.

    Raises `InputError` where there are several.
    """
    named = [{"name": name, **entry} for name, entry in rules.items() if entry["kind"] == kind]
    if len(named) > 1:
        raise InputError(
            f"config: rules has {len(named)} of kind {kind}, {' and '.join(one['name'] for one in named)}, expected "
            "one at most"
        )
    return named[0] if named else None


def sites_of(rules: Rules) -> set[str]:
    """Sites that are extracted for the rules' sake."""
    return {site for rule in rules_of(rules).values() for site in rule.recorded_sites}


def thresholds_of(rules: Rules, sites: Collection[str]) -> Iterator[tuple[str, float, str]]:
    """Every threshold that is applied to unscaled abs(x) at one of `sites`: its key, its value, the site."""
    for name, rule in hit_rules(rules).items():
        for site in rule.sites if rule.scale is None else ():
            if site in sites:
                yield f"rules.{name}.threshold", rule.threshold, site
                if rule.grid:
                    yield f"rules.{name}.sensitivity or sensitivity.thresholds", min(rule.grid), site


def counted_at(rules: Rules) -> dict[str, Any]:
    """What is counted, or listed, of sequences with too many hits to be listed at the floor.

    pairs    by rule, of those with the same sites by the first: its `sites`, hits at which are counted jointly, and
             `thresholds`, ascending
    listed   by site whose values are listed all the same, above `threshold` and at least `ratio` medians
    """
    pairs: dict[str, Any] = {}
    listed: dict[str, dict[str, float]] = {}
    for name, rule in hit_rules(rules).items():
        if rule.scale is not None:
            continue
        if rule.counts_suffice:
            same = (one for one, entry in pairs.items() if set(entry["sites"]) == set(rule.sites))
            entry = pairs.setdefault(next(same, name), {"sites": list(rule.sites), "thresholds": []})
            entry["thresholds"] = sorted({*entry["thresholds"], float(rule.threshold), *map(float, rule.grid)})
            continue
        for site in rule.sites:
            least = dict(zip(("threshold", "ratio"), map(float, rule.listed_above), strict=True))
            before = listed.get(site, least)
            listed[site] = {key: min(before[key], least[key]) for key in least}
    return {"pairs": pairs, "listed": listed}


def scaled_at(rules: Rules, sites: Collection[str]) -> dict[str, dict[str, float]]:
    """By site of `sites` and scale, the smallest threshold of a rule."""
    found: dict[str, dict[str, float]] = {}
    for rule in hit_rules(rules).values():
        if rule.scale is None:
            continue
        for site in rule.sites:
            if site in sites:
                before = found.setdefault(site, {}).get(rule.scale, inf)
                found[site][rule.scale] = float(min(rule.threshold, *rule.grid, before))
    return found
