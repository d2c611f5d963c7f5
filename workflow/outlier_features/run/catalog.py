"""The shipped catalog of models and corpora, and what a configuration's own catalog makes of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# Keys that say where a model or a corpus comes from.
_SOURCES = {"hub", "path", "pypi", "dump", "transformer_lens", "files", "stdlib"}


def read_catalog(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def with_catalog(config: Mapping[str, Any], shipped: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the `shipped` entries beside those of its own catalog.

    An own entry that names a source replaces the shipped one of its name; another changes keys of it. What is no
    catalog is left as it is, for the schema to refuse.
    """
    own = config.get("catalog") or {}
    if not isinstance(own, Mapping):
        return dict(config)
    catalog = {**own}
    for kind, entries in shipped.items():
        changes = own.get(kind) or {}
        if isinstance(changes, Mapping):
            catalog[kind] = {**entries, **{name: _entry(entries.get(name), new) for name, new in changes.items()}}
    return {**config, "catalog": catalog}


def _entry(shipped: Mapping[str, Any] | None, own: Any) -> Any:
    if shipped is None or not isinstance(own, Mapping) or _SOURCES & own.keys():
        return own
    return {**shipped, **own}
