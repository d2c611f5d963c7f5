"""The command `outlier-features count`: the outliers of a dump, without a config."""

import argparse
import re
from pathlib import Path
from typing import Any

from outlier_features.cores import usable_cores
from outlier_features.files.layer_keys import LAYOUTS

_LARGEST = (2 - 2**-23) * 2.0**127  # of float32
_MAX_THREADS = 16  # more do not read memory faster


_DESCRIPTION = (
    "Count the activations over a threshold at locations (sequence, token, dim) that enough layers hit: by dim with "
    "sign, layer and token, with the quartiles of all values. Exact, in memory that does not grow with the file."
)
_EPILOG = "Exit status: 0; 1 after one line `error: ...` on a file that is not what it must be; 2 on a usage mistake."


def add_count(count: argparse.ArgumentParser) -> None:
    count.description, count.epilog = _DESCRIPTION, _EPILOG
    count.set_defaults(run=_count)

    add = count.add_argument_group("activations").add_argument
    add(
        "--input", required=True, nargs="+", metavar="FILE",
        help="safetensors or .npz file; several, if each has other sequences or layers; `{layer}` in a path is theirs",
    )  # fmt: skip
    add(
        "--key", required=True,
        help="a tensor (N, L, T, H), or, with {layer} for the layer's number, those of one layer each, (N, T, H) or "
        "(T, H), as in blocks.{layer}.hook_resid_post; K is K.{layer} too",
    )  # fmt: skip
    add("--compare-key", metavar="KEY", help="another key, counted as well; the dims of both are compared")
    add("--layout", choices=LAYOUTS, metavar="AXES", help=f"the axes of a tensor: {', '.join(LAYOUTS)}")
    add(
        "--lengths", type=_lengths, metavar="KEY|N,N,...",
        help="tokens of each sequence: without N in the layout they follow one another along T, with N they are padded "
        "at their ends; or, from 0 on, where each ends (cu_seqlens)",
    )  # fmt: skip
    add("--layers", type=_numbers, metavar="N,N,...", help="the layers' numbers along L (default: from 0)")

    rule = count.add_argument_group("rule")
    add = rule.add_argument
    add("--threshold", type=_threshold, default=6.0, metavar="X", help="abs(x) above it is an outlier (default: 6.0)")
    add("--inclusive", action="store_true", help="abs(x) equal to the threshold is an outlier too")
    criterion = rule.add_mutually_exclusive_group()
    criterion.add_argument(
        "--min-layer-fraction", dest="layer_share", type=_share, default=0.25, metavar="F",
        help="share of the layers that must hit a location for its outliers to be kept (default: 0.25)",
    )  # fmt: skip
    criterion.add_argument(
        "--no-layer-fraction", dest="layer_share", action="store_const", const=None, help="one layer is enough"
    )

    add = count.add_argument_group("quartiles, exact or of a sample with its standard error").add_argument
    add("--iqr-samples", type=_samples, default=0, metavar="exact|N", help="of all values (default: exact)")
    add("--outlier-samples", type=_samples, default=0, metavar="exact|N", help="of the kept outliers (default: exact)")

    add = count.add_argument_group("output").add_argument
    add("--format", choices=("table", "json", "csv"), default="table", help="json and csv have everything; table "
        "(default) has of the dims, layers and tokens the ten with most outliers")  # fmt: skip
    add("--all", action="store_true", help="table with every dim, layer and token")
    add("--output", type=Path, metavar="FILE", help="write there instead of to standard output")
    add("--quiet", action="store_true", help="no progress on standard error")


def _lengths(text: str) -> str | list[int]:
    return _numbers(text) if re.fullmatch("[0-9]+(,[0-9]+)*", text) else text


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _threshold(text: str) -> float:
    value = float(text)
    if not 0 <= value <= _LARGEST:
        raise argparse.ArgumentTypeError(f"{text} found, expected a number from 0 to {_LARGEST:.3g}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} found, expected a number from 0 to 1")
    return value


def _samples(text: str) -> int:
    value = 0 if text == "exact" else int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} found, expected exact or a number of samples")
    return value


# argparse names the type in its message, where float() or int() fails.
_threshold.__name__, _share.__name__, _samples.__name__ = "number", "number", "number of samples"
_numbers.__name__ = "list of numbers"


def _count(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    _require_usable(options, parser)
    # With numba, half a second, which a usage mistake is spared.
    from outlier_features.locate.count_dump import count_dump
    from outlier_features.locate.count_locations import LocationRule

    keys = [key for key in (options.key, options.compare_key) if key is not None]
    document = count_dump(
        {"dump": options.input, "keys": {key: key for key in keys}, "layout": options.layout,
         "lengths": options.lengths, "layers": options.layers},
        LocationRule(options.threshold, options.inclusive, options.layer_share),
        value_samples=options.iqr_samples,
        magnitude_samples=options.outlier_samples,
        threads=usable_cores(_MAX_THREADS),
        quiet=options.quiet,
    )  # fmt: skip
    _write(document, options)


def _require_usable(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from outlier_features.locate.count_document import COMPARISON

    if options.compare_key == options.key:
        parser.error(f"argument --compare-key: {options.key} found, expected another key than --key")
    if options.compare_key is not None and COMPARISON in (options.key, options.compare_key):
        parser.error(f"argument --compare-key: a key named {COMPARISON} cannot be compared")
    files = [Path(file) for file in options.input if options.output and options.output.exists()]
    if any(file.exists() and options.output.samefile(file) for file in files):
        parser.error("argument --output: expected another file than --input")


def _write(document: dict[str, Any], options: argparse.Namespace) -> None:
    from outlier_features.command.count_tables import count_tables
    from outlier_features.command.output import write_found

    write_found(
        document,
        lambda: count_tables(document, _name(options.input), every=options.all),
        options.format,
        options.output,
    )


def _name(files: list[str]) -> str:
    others = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{Path(files[0]).name}{others}"
