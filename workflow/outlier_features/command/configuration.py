"""The configuration that a command is about: the same that Snakemake would run."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from outlier_features.run.catalog import read_catalog, with_catalog
from outlier_features.run.config import read_schema, require_files, resolve_config
from outlier_features.run.config_files import overlaid, read_config_file
from outlier_features.run.run_places import with_places
from outlier_features.workflow_files import CATALOG, CONFIG, CONFIG_SCHEMA


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
    config: dict[str, Any] = read_config_file(CONFIG)
    for overlay in overlays:
        config = overlaid(config, overlay)
    complete = resolve_config(with_catalog(config, read_catalog(CATALOG)), read_schema(CONFIG_SCHEMA))
    require_files(complete)
    return with_places(complete)


def shipped_catalog() -> dict[str, Any]:
    return read_catalog(CATALOG)
