"""The configuration that a command is about: the same that Snakemake would run."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from outlier_features.errors import InputError
from outlier_features.run.catalog import read_catalog, with_catalog
from outlier_features.run.config import read_schema, require_files, resolve_config
from outlier_features.run.config_files import read_config_file
from outlier_features.run.run_places import with_places

_WORKFLOW = Path(__file__).parents[2]
SNAKEFILE = _WORKFLOW.parent / "Snakefile"
_CONFIG, _CATALOG = _WORKFLOW.parent / "config.yaml", _WORKFLOW / "catalog.yaml"
_SCHEMA = _WORKFLOW / "schemas" / "config.schema.yaml"
MASK_SCHEMA = _WORKFLOW / "schemas" / "mask.schema.json"


def add_configfile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--configfile", nargs="+", type=Path, action="extend", default=[], metavar="FILE",
        help="overlays of config.yaml, as Snakemake takes them",
    )  # fmt: skip


def resolved_config(overlays: Iterable[Path]) -> dict[str, Any]:
    """config.yaml with overlays and the shipped catalog, complete and checked. Raises `InputError`."""
    return resolved([read_config_file(path) for path in overlays])


def resolved(overlays: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`resolved_config` of the content of overlays."""
    if not _CONFIG.is_file():
        raise InputError(f"{_CONFIG} is not there, expected the workflow around this package")
    config: dict[str, Any] = read_config_file(_CONFIG)
    for overlay in overlays:
        config = _overlaid(config, overlay)
    complete = resolve_config(with_catalog(config, read_catalog(_CATALOG)), read_schema(_SCHEMA))
    require_files(complete)
    return with_places(complete)


def shipped_catalog() -> dict[str, Any]:
    return read_catalog(_CATALOG)


def _overlaid(config: Any, overlay: Any) -> Any:
    """As Snakemake puts one configuration over another: mappings key by key, at every level."""
    if not isinstance(config, Mapping) or not isinstance(overlay, Mapping):
        return overlay
    return {**config, **{key: _overlaid(config.get(key), value) for key, value in overlay.items()}}
