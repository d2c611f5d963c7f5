"""The command `outlier-features completion`: a script that has a shell complete commands, options and file names."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from outlier_features.command.output import write_text

_PATHS = ("MODEL", "DIR", "NAME|DIR")  # what may be a path, or a name


def add_completion(completion: argparse.ArgumentParser) -> None:
    completion.description = (
        "Print a script that has a shell complete the commands and their options: "
        "`eval \"$(outlier-features completion bash)\"` in ~/.bashrc, or its output in a directory of zsh's $fpath."
    )  # fmt: skip
    completion.set_defaults(run=_completion)
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def _completion(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    import shtab

    from outlier_features.command.main import COMMANDS, parser_of

    whole = parser_of(COMMANDS)
    for action in _actions(whole):
        if action.type is Path or action.metavar in _PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    write_text(shtab.complete(whole, options.shell) + "\n", None)
    sys.stdout.flush()


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of a parser and of those of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
