"""What the commands `neuron` and `dim` have in common: the run they look at, and the page that they open."""

import argparse
import sys
import webbrowser
from pathlib import Path

from outlier_features.errors import InputError
from outlier_features.files.model_source import SOURCE_FILE
from outlier_features.gallery.gallery_run import GalleryRun


def add_run_and_page(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("run_directory", type=Path, metavar="RUN", help="a run's directory, <results>/<model>/<corpus>")
    add("--resources", type=Path, default=Path("resources"), metavar="DIR", help="where the model was fetched to; its "
        "tokenizer names tokens; without it they are numbers (default: resources)")  # fmt: skip
    add("--output-dir", type=Path, metavar="DIR", help="where a page is made that the gallery does not have (default: "
        "pages in the run's directory)")  # fmt: skip
    add("--no-open", action="store_true", help="make the page and name it, and open no browser")


def read_run(options: argparse.Namespace) -> GalleryRun:
    directory: Path = options.run_directory
    if not (directory / "tokens.safetensors").is_file():
        raise InputError(
            f"{directory}: found no tokens.safetensors in it, expected a run's directory, <results>/<model>/<corpus>"
        )
    source = options.resources / "models" / directory.absolute().parent.name / SOURCE_FILE
    return GalleryRun.read(directory, source if source.is_file() else None)


def folder_of(options: argparse.Namespace) -> Path:
    folder: Path = options.output_dir or options.run_directory / "pages"
    return folder


def show_page(page: Path, *, opened: bool) -> None:
    """Name a page, and open it unless that is not wanted or there is no browser."""
    print(f"\nPage: {page}")
    sys.stdout.flush()
    if opened:
        webbrowser.open(page.absolute().as_uri())
