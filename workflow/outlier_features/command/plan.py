"""The command `outlier-features plan`: what a configuration's runs will take, before they are run."""

import argparse
from pathlib import Path

from outlier_features.command.configuration import add_configfile, resolved_config
from outlier_features.command.output import write_found
from outlier_features.command.plan_tables import plan_parts
from outlier_features.plan.plan_run import plan_run
from outlier_features.run.local_models import LocalModels


def add_plan(plan: argparse.ArgumentParser) -> None:
    plan.description = (
        "Say what the runs of a configuration will take: parameters, memory, FLOPs, disk, jobs, loads and, once a run "
        "has left benchmarks, hours. Nothing is fetched but configs."
    )
    plan.set_defaults(run=_plan)
    add_configfile(plan)
    plan.add_argument("--json", action="store_true", help="as JSON")
    plan.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to standard output")


def _plan(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    config = resolved_config(options.configfile)
    LocalModels.of(config["catalog"]["models"])
    document = plan_run(config)
    write_found(document, lambda: plan_parts(document), "json" if options.json else "table", options.output)
