"""The command `outlier-features`: a file or a run in hand, without a config."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from outlier_features.errors import InputError

BAD_DATA, INTERRUPTED = 1, 130
COMMANDS = ("count", "compare", "gains", "attention")  # each has a module command_<name> with a function add_<name>


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status: 0, or 1 with one `error:` line. A usage mistake exits with 2."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser([given[0]] if given and given[0] in COMMANDS else COMMANDS)
    options = parser.parse_args(given)
    try:
        options.run(options, parser)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_DATA
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BAD_DATA
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """For these subcommands: importing what one of them needs can take a second."""
    parser = argparse.ArgumentParser(
        prog="outlier-features",
        description="Outlier features of transformer language models.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in names:
        getattr(import_module(f"outlier_features.command_{name}"), f"add_{name}")(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
