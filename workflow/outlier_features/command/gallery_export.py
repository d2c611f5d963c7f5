"""The command `outlier-features gallery-export`: a run's neurons as JSON lines."""

import argparse
from pathlib import Path

from outlier_features.command.gallery import read_run
from outlier_features.gallery.neuron_lines import write_lines

POPULATIONS = ("all", "without_first", "without_high_norm")


def add_gallery_export(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Write the neurons of a run that have pages as JSON lines: their statistics, the tokens that they move, and "
        "their examples with every token and value. docs/gallery-export.md has the keys. No model is loaded."
    )
    command.set_defaults(run=_export)
    add = command.add_argument
    add("run_directory", type=Path, metavar="RUN", help="a run's directory, <results>/<model>/<corpus>")
    add("--output", type=Path, required=True, metavar="FILE", help="the file, .jsonl or .jsonl.gz")
    add("--population", choices=POPULATIONS, default="all", help="whose largest and smallest activations are listed "
        "(default: all)")  # fmt: skip
    add("--resources", type=Path, default=Path("resources"), metavar="DIR", help="where the model was fetched to; its "
        "tokenizer names tokens; without it `pos_str` and `neg_str` have nulls (default: resources)")  # fmt: skip


def _export(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    count = write_lines(read_run(options), options.output, options.population)
    print(f"{options.output}: {count} neurons")
