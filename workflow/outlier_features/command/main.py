"""The command `outlier-features`: a file or a run in hand, without a config."""

import argparse
import os
import sys
import traceback
from collections.abc import Collection, Sequence
from importlib import import_module

from outlier_features import __version__
from outlier_features.cores import wait_without_spinning
from outlier_features.errors import InputError, error_in_short, fault_sentence
from outlier_features.machine_limits import refusal

BAD_DATA, INTERRUPTED = 1, 130
# Each has a module <name> beside this one, with a function add_<name>; there a hyphen is an underscore.
COMMANDS = {
    "run": "run the workflow on a model of your own, from its name or its files to the report",
    "open": "open the report in a browser",
    "plan": "say what the runs of a configuration will take, before anything is fetched but configs",
    "status": "say which runs of a configuration are done, running, failed or missing",
    "count": "count the outliers of an activation dump",
    "show": "print what runs found",
    "neuron": "print what a run says of a neuron, and open its page",
    "dim": "print what a run says of a dimension, and open its page",
    "gallery-export": "write a run's neurons as JSON lines, for other programs that show neurons",
    "quantization": "list what a run leaves for quantizers, and write SmoothQuant's scales as a .pt file",
    "compare": "compare all runs, or the dims that each rule selects in two",
    "gains": "say whether the gains of norms are all exactly 1.0, and what they are at some dims",
    "recover": "end what a killed run has left at work, so that another can go on",
    "verify": "read every artifact of a run and compare checksums and provenance",
    "attention": "draw a layer's attention as heatmaps, from a model, a run or a dump",
    "completion": "print what completes these commands in a shell",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status: 0, or 1 with one `error:` line. A usage mistake exits with 2.

    Of a fault of the program itself the traceback stands above that line.
    """
    wait_without_spinning()
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = parser_of(given[:1])
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
    except Exception as error:
        sentence = refusal(error, given[0])
        if sentence is None:
            traceback.print_exc()
            sentence = fault_sentence(error_in_short(error), "what stands above, the command")
        print(f"error: {sentence}", file=sys.stderr)
        return BAD_DATA
    return 0


def parser_of(wanted: Collection[str]) -> argparse.ArgumentParser:
    """Only the wanted subcommands are imported, since what one needs can take a second."""
    parser = argparse.ArgumentParser(
        prog="outlier-features",
        description="Outlier features of transformer language models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"outlier-features {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        if name in wanted:
            module = name.replace("-", "_")
            getattr(import_module(f"outlier_features.command.{module}"), f"add_{module}")(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
