"""The second pass of a run in which some models failed: what is of all models together, made of the others."""

import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path


def run_second_pass(
    arguments: Sequence[str],
    asked: Collection[str],
    targets: Iterable[str],
    rules: Iterable[str],
    configfiles: Iterable[Path],
) -> int:
    """Run another Snakemake beside the one that runs, which holds the lock until it ends; returns its exit status.

    arguments     of the Snakemake that runs, all of which hold but for its targets, `asked`, and its config files
    targets       files to make
    rules         by which alone: nothing is made anew of what the first pass made, also with --forceall
    """
    options = [one for one in arguments if one not in asked]
    command = [
        sys.executable, "-m", "snakemake", *sorted(targets), *options, "--nolock",
        "--configfile", *map(str, configfiles), "--allowed-rules", *rules,
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode
