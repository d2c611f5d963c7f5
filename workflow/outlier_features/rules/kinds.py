"""The kinds of rules there are, and the rules that a configuration makes of them.

A kind is a class in a module of this package, or one that another distribution names as an entry point of the group
`outlier_features.rules`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from inspect import getsourcefile
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeVar

from outlier_features.errors import InputError
from outlier_features.model.bases import RESIDUAL
from outlier_features.rules.rule import HitRule, Rule, unlisted

GROUP = "outlier_features.rules"
PACKAGE = Path(__file__).parent
Some = TypeVar("Some", bound=Rule)


@cache
def kinds() -> dict[str, type[Rule]]:
    """By name; those of this package first.

    Raises `InputError` where an entry point cannot be loaded, is no kind, or takes the name of another.
    """
    found = {kind.kind: kind for kind in _own()}
    for entry in entry_points(group=GROUP):
        try:
            kind = entry.load()
        except Exception as error:  # whatever code of others raises
            raise InputError(
                f"entry point {entry.name} ({entry.value}) of {GROUP}: cannot be loaded: {error}"
            ) from error
        if not (isinstance(kind, type) and issubclass(kind, Rule) and getattr(kind, "kind", None)):
            raise InputError(
                f"entry point {entry.name} ({entry.value}) of {GROUP}: expected a subclass of Rule with a kind"
            )
        if found.setdefault(kind.kind, kind) is not kind:
            raise InputError(
                f"entry point {entry.name} ({entry.value}) of {GROUP}: there is a kind {kind.kind!r} already"
            )
    return found


def _own() -> Iterator[type[Rule]]:
    for module in iter_modules([str(PACKAGE)]):
        for one in vars(import_module(f"{__package__}.{module.name}")).values():
            if isinstance(one, type) and issubclass(one, Rule) and "kind" in vars(one):
                yield one


def rules_of(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Rule]:
    """The rules by name, from what the configuration or the provenance of a file has under `rules`.

    Raises `InputError` where a kind is not there, as when the package that brings it was removed.
    """
    found = {}
    for name, entry in config.items():
        if entry["kind"] not in kinds():
            raise InputError(f"rule {name} is of kind {entry['kind']!r}, expected one of {', '.join(kinds())}")
        kind = kinds()[entry["kind"]]
        known = {one.name for one in fields(kind)}
        found[name] = kind(name=name, **{key: unlisted(value) for key, value in entry.items() if key in known})
    return found


def of_kind(rules: Mapping[str, Rule], kind: type[Some]) -> dict[str, Some]:
    """Those of a kind, or of any that derives from it."""
    return {name: rule for name, rule in rules.items() if isinstance(rule, kind)}


def hit_rules(config: Mapping[str, Mapping[str, Any]]) -> dict[str, HitRule]:
    """The rules that select dims by hits, see `rules_of`."""
    return of_kind(rules_of(config), HitRule)  # type: ignore[type-abstract]


def applied_sites(rule: HitRule, run: Mapping[str, Any]) -> list[str]:
    """The rule's sites that a run has and, if it has a scale, knows the scale of.

    run   `sites`, and `without_scale`: by site and scale why it is not known
    """
    absent = run.get("without_scale", {})
    return [site for site in rule.sites if site in run["sites"] and rule.scale not in absent.get(site, {})]


def followed(config: Mapping[str, Mapping[str, Any]], basis: str = RESIDUAL) -> dict[str, HitRule]:
    """The rules on a basis whose dims are looked at more closely, those that list their hits first."""
    found = {name: rule for name, rule in hit_rules(config).items() if rule.follow_up and rule.basis == basis}
    return dict(sorted(found.items(), key=lambda item: not item[1].lists_hits))


def listing_rules(config: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the followed rules of the residual stream whose hits are rows of massive.parquet."""
    return [name for name, rule in followed(config).items() if rule.lists_hits]


def sources_of(rules: Mapping[str, Rule]) -> list[Path]:
    """Files of the kinds that other distributions brought: an edit of one is a reason to apply its rules again."""
    files = {Path(file) for rule in rules.values() if (file := getsourcefile(type(rule)))}
    return sorted(file for file in files if file.parent != PACKAGE)
