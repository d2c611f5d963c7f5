"""The revisions of a model: each is a model of its own, `<name>@<revision>`."""

import re
from collections.abc import Mapping
from typing import Any

from outlier_features.errors import InputError
from outlier_features.model_name import AT, split_half, split_name, step_of

REVISION = "{revision}"  # in a path, where a revision's name stands
_STEP = "{step}"  # in the name of a range
_MOST = 10_000  # revisions of a range


def with_revisions(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`config` with an entry of its own for each revision of a model that is selected.

    A name alone means all of its entry's `revisions`, `<name>@<revision>` one, whether or not they name it. Of a model
    on the hub the revision is a commit, branch or tag; in a `path` it stands in the place of `{revision}`. The entries
    keep their `revisions`, for the schema to check. Raises `InputError` where a model can have none.
    """
    catalog, selected = config.get("catalog"), config.get("models")
    entries = catalog.get("models") if isinstance(catalog, Mapping) else None
    if not isinstance(catalog, Mapping) or not isinstance(entries, Mapping) or not isinstance(selected, list):
        return config
    if not all(isinstance(name, str) for name in selected):
        return config
    names: list[str] = []
    made: dict[str, Any] = {}
    for name in selected:
        model, revision = split_name(name)
        whole, half = split_half(model) if model not in entries else (model, None)
        entry = entries.get(whole)
        wanted = [revision] if revision is not None else _listed(whole, entry)
        if not isinstance(entry, Mapping) or wanted is None:
            names.append(name)
            continue
        for one in wanted:
            made[f"{whole}{AT}{one}"] = _at(whole, entry, one)
            names.append(f"{whole}{AT}{one}" + (f".{half}" if half else ""))
    for name in names:
        if name in entries and AT in name:
            raise InputError(
                f"config: catalog.models has {name!r}, expected a name without {AT}, which stands before a revision"
            )
    if not made:
        return config
    return {**config, "models": [*dict.fromkeys(names)], "catalog": {**catalog, "models": {**entries, **made}}}


def _listed(name: str, entry: Any) -> list[str] | None:
    """The revisions that an entry names; None where it names none, or what it says is none that the schema allows."""
    if not isinstance(entry, Mapping):
        return None
    if "revisions" not in entry:
        if REVISION in str(entry.get("path")):
            raise InputError(
                f"config: catalog.models.{name}.path: {entry['path']!r} is of a revision, expected `revisions` beside "
                f"it, or {name}{AT}<revision> in models"
            )
        return None
    found: list[str] = []
    for place, one in enumerate(entry["revisions"] if isinstance(entry["revisions"], list) else [None]):
        if isinstance(one, str) and re.fullmatch(r"[\w.-]+", one, re.ASCII):
            found.append(one)
        elif isinstance(one, Mapping) and all(type(one.get(key)) is int for key in ("from", "to", "every")):
            if one["every"] < 1 or not isinstance(one.get("name", ""), str):
                return None
            found += _range(f"config: catalog.models.{name}.revisions.{place}", one)
        else:
            return None
    return found or None


def _range(key: str, spec: Mapping[str, Any]) -> list[str]:
    steps = range(spec["from"], spec["to"] + 1, spec["every"])
    if not 1 <= len(steps) <= _MOST:
        raise InputError(f"{key} has {len(steps)} revisions, expected 1 to {_MOST}")
    form = spec.get("name", f"step{_STEP}")
    if any(step_of(form.replace(_STEP, str(step))) != step for step in steps):
        raise InputError(
            f"{key}.name is {form!r}, expected one in which {_STEP} is read as the step, such as step{_STEP}"
        )
    return [form.replace(_STEP, str(step)) for step in steps]


def _at(name: str, entry: Mapping[str, Any], revision: str) -> dict[str, Any]:
    key = f"config: catalog.models.{name}"
    if "revision" in entry and "revisions" in entry:
        raise InputError(f"{key} has revision and revisions, expected one of them")
    path = entry.get("path")
    changed = {"path": path.replace(REVISION, revision)} if isinstance(path, str) and REVISION in path else {}
    if "hub" in entry:
        changed["revision"] = revision
    if not changed:
        raise InputError(
            f"{key}: revision {revision!r} is asked for, expected `hub` or {REVISION} in `path`, which say where it is"
        )
    return {**entry, **changed}
