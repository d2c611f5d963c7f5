"""The command `outlier-features quantization`: what a run leaves for quantizers, and what is made of it on request."""

import argparse
from pathlib import Path

from outlier_features.errors import InputError
from outlier_features.files.missing import require_had
from outlier_features.files.tensorfile import TensorFile
from outlier_features.quantize.smoothquant_scales import write_pt

_FOLDER, _SCALES = "quantization", "smoothquant_scales.safetensors"


def add_quantization(command: argparse.ArgumentParser) -> None:
    command.description = (
        "List the files of a run that quantizers read, docs/quantizers.md; or write SmoothQuant's scales as the pickle "
        "that its own scripts load."
    )
    command.set_defaults(run=_quantization)
    add = command.add_argument
    add("run_directory", type=Path, metavar="RUN", help="a run's directory, <results>/<model>/<corpus>")
    add("--pt", type=Path, metavar="FILE", help="write SmoothQuant's scales there, a .pt file")


def _quantization(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    folder = options.run_directory / _FOLDER
    if not (folder / _SCALES).is_file():
        raise InputError(f"{folder}: found no {_SCALES} in it, expected the directory of a run of a model")
    scales = TensorFile(folder / _SCALES)
    require_had(scales.provenance)
    if options.pt:
        print(f"{options.pt}: scales of {write_pt(scales, options.pt)} linear layers")
        return
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            print(f"{path}: {path.stat().st_size:,} bytes")
