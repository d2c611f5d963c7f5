"""The second pass of a run in which some models failed: what is of all models together, made of the others."""

import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path


def second_pass(
    arguments: Sequence[str],
    asked: Collection[str],
    targets: Iterable[str],
    rules: Iterable[str],
    configfiles: Iterable[Path],
) -> list[str]:
    """The command of another Snakemake beside the one that runs, which holds the lock until it ends.

    arguments     of the Snakemake that runs, all of which hold but for its targets, `asked`, and its config files
    targets       files to make
    rules         by which alone: nothing is made anew of what the first pass made, also with --forceall
    """
    options = [one for one in arguments if one not in asked]
    return [
        sys.executable, "-m", "snakemake", *sorted(targets), *options, "--nolock",
        "--configfile", *map(str, configfiles), "--allowed-rules", *rules,
    ]  # fmt: skip
