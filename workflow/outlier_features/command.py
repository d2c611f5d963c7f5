"""The command `outlier-features`: a file or a run in hand, without a config."""

import argparse
import os
import sys
from collections.abc import Sequence

from outlier_features.command_count import add_count
from outlier_features.errors import InputError

BAD_DATA, INTERRUPTED = 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status: 0, or 1 with one `error:` line. A usage mistake exits with 2."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options, parser)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_DATA
    except MemoryError as error:
        print(f"error: out of memory: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_DATA
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BAD_DATA
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="outlier-features",
        description="Outlier features of transformer language models.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_count(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
