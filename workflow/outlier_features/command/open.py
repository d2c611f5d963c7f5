"""The command `outlier-features open`: the report in a browser."""

import argparse
import webbrowser
from pathlib import Path

from outlier_features.errors import InputError


def add_open(command: argparse.ArgumentParser) -> None:
    command.description = "Open the report of a directory of results in a browser, and name it."
    command.set_defaults(run=_open)
    command.add_argument(
        "results", nargs="?", type=Path, default=Path("results"), metavar="RESULTS",
        help="a directory of results (default: %(default)s)",
    )  # fmt: skip


def _open(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    report: Path = options.results / "report.html"
    if not report.is_file():
        raise InputError(f"{report} is not there, expected a directory of results, where a run left its report")
    print(report, flush=True)
    webbrowser.open(report.absolute().as_uri())
