"""The command `outlier-features recover`: clear the way after a run was killed."""

import argparse
from pathlib import Path

from outlier_features.run.recovery import recover, require_nothing_left


def add_recover(command: argparse.ArgumentParser) -> None:
    command.description = (
        "End the jobs that a killed run has left at work in a directory; refuse where a run still goes on. "
        "Then `snakemake --unlock` removes its lock and `snakemake --rerun-incomplete` goes on; `make resume` does all."
    )
    command.set_defaults(run=_recover)
    command.add_argument(
        "--directory", type=Path, default=Path(), metavar="D", help="where Snakemake was started (default: here)"
    )
    command.add_argument("--check", action="store_true", help="end nothing, fail if a run goes on or left anything")


def _recover(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    (require_nothing_left if options.check else recover)(options.directory.resolve())
