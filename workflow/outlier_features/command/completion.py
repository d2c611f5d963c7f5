"""The command `outlier-features completion`: a script that has a shell complete commands, options and file names."""

import argparse
import sys

from outlier_features.command.output import write_text


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

    write_text(shtab.complete(parser_of(COMMANDS), options.shell) + "\n", None)
    sys.stdout.flush()
