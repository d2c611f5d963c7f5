"""The command `outlier-features verify`: is every artifact still as it was written?"""

import argparse
from pathlib import Path

from outlier_features.errors import InputError
from outlier_features.run.verify_artifacts import verify_artifacts


def add_verify(verify: argparse.ArgumentParser) -> None:
    verify.description = (
        "Read every artifact of a run and compare checksums and provenance; a line for each that is bad."
    )
    verify.set_defaults(run=_verify)
    verify.add_argument(
        "directories", nargs="+", type=Path, metavar="DIRECTORY", help="results of runs, or fetched resources"
    )


def _verify(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    checked = bad = 0
    for verdict in verify_artifacts(options.directories):
        checked += 1
        if verdict.found is not None:
            bad += 1
            print(f"{verdict.path}: {verdict.found}", flush=True)
    print(f"{checked} files checked, {bad} bad")
    if bad:
        raise InputError(f"{bad} of {checked} files are bad; delete those, and a run makes again what it needs")
