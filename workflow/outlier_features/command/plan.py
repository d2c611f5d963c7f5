"""The command `outlier-features plan`: what a configuration's runs will take, before they are run."""

import argparse
from pathlib import Path
from typing import Any

from outlier_features.command.output import write_found
from outlier_features.command.plan_tables import plan_parts
from outlier_features.errors import InputError
from outlier_features.plan.plan_run import plan_run
from outlier_features.run.catalog import read_catalog, with_catalog
from outlier_features.run.config import read_schema, require_files, resolve_config
from outlier_features.run.config_files import read_config_file

_WORKFLOW = Path(__file__).parents[2]
_CONFIG, _CATALOG = _WORKFLOW.parent / "config.yaml", _WORKFLOW / "catalog.yaml"
_SCHEMA = _WORKFLOW / "schemas" / "config.schema.yaml"


def add_plan(plan: argparse.ArgumentParser) -> None:
    plan.description = (
        "Say what the runs of a configuration will take: parameters, memory, FLOPs, disk, jobs, loads and, once a run "
        "has left benchmarks, hours. Nothing is fetched but configs."
    )
    plan.set_defaults(run=_plan)
    add = plan.add_argument
    add(
        "--configfile", nargs="+", type=Path, action="extend", default=[], metavar="FILE",
        help="overlays of config.yaml, as Snakemake takes them",
    )  # fmt: skip
    add("--json", action="store_true", help="as JSON")
    add("--output", type=Path, metavar="FILE", help="write there instead of to standard output")


def _plan(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if not _CONFIG.is_file():
        raise InputError(f"{_CONFIG} is not there, expected the workflow around this package")
    config: dict[str, Any] = read_config_file(_CONFIG)
    for path in options.configfile:
        config = _overlaid(config, read_config_file(path))
    resolved = resolve_config(with_catalog(config, read_catalog(_CATALOG)), read_schema(_SCHEMA))
    require_files(resolved)
    document = plan_run(resolved)
    write_found(document, lambda: plan_parts(document), "json" if options.json else "table", options.output)


def _overlaid(config: Any, overlay: Any) -> Any:
    """As Snakemake puts one configuration over another: mappings key by key, at every level."""
    if not isinstance(config, dict) or not isinstance(overlay, dict):
        return overlay
    return {**config, **{key: _overlaid(config.get(key), value) for key, value in overlay.items()}}
