"""The command `outlier-features count`: the outliers of a dump, without a config."""

import argparse
import os
import sys
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from outlier_features.command_output import plain_parts, print_parts, write_text
from outlier_features.count_document import (
    COMPARISON,
    DTYPES,
    comparison_document,
    count_document,
    to_csv,
    to_json,
)
from outlier_features.count_locations import LocationCount, LocationRule, compare_dims, count_locations, site_tensors
from outlier_features.count_tables import count_tables
from outlier_features.errors import InputError
from outlier_features.progress import byte_bar
from outlier_features.scan import SiteTensors, itemsize
from outlier_features.tensorfile import TensorFile

_LARGEST = float(np.finfo(np.float32).max)


def add_count(commands: Any) -> None:
    text = "Count activations over a threshold at locations (sequence, token, dim) that enough layers hit."
    count = commands.add_parser("count", help=text, description=text, allow_abbrev=False)
    count.set_defaults(run=_count)
    add = count.add_argument
    add("--input", required=True, type=Path, metavar="F", help="safetensors file")
    add("--key", required=True, help="tensor (N, L, T, H), or the K of one tensor K.0, K.1, ... (N, T, H) per layer")
    add("--compare-key", metavar="KEY", help="another key, counted as well; the dims of both are compared")
    add("--threshold", type=_threshold, default=6.0, metavar="X", help="abs(x) above it is an outlier (default: 6.0)")
    add("--inclusive", action="store_true", help="abs(x) equal to the threshold is an outlier too")
    criterion = count.add_mutually_exclusive_group()
    criterion.add_argument(
        "--min-layer-fraction", type=_fraction, default=0.25, metavar="F",
        help="share of the layers that must hit a location (default: 0.25)",
    )  # fmt: skip
    criterion.add_argument(
        "--no-layer-fraction", dest="min_layer_fraction", action="store_const", const=None, help="one layer is enough"
    )
    add("--iqr-samples", type=_samples, default=0, metavar="exact|N", help="values for the quartiles (default: exact)")
    add("--outlier-samples", type=_samples, default=0, metavar="exact|N", help="outliers for theirs (default: exact)")
    add("--format", choices=("table", "json", "csv"), default="table")
    add("--output", type=Path, metavar="FILE", help="write there instead of to standard output")
    add("--quiet", action="store_true", help="no progress on standard error")


def _threshold(text: str) -> float:
    value = float(text)
    if not 0 <= value <= _LARGEST:
        raise argparse.ArgumentTypeError(f"{text} found, expected a number from 0 to {_LARGEST:.3g}")
    return value


def _fraction(text: str) -> float:
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
_threshold.__name__, _fraction.__name__, _samples.__name__ = "number", "number", "number of samples"


def _count(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    _require_usable(options, parser)
    file = TensorFile(options.input)
    keys = [key for key in (options.key, options.compare_key) if key is not None]
    sites = [site_tensors(file, key) for key in keys]
    if len({site.shape[2] for site in sites}) > 1:
        first, second = (f"{site.site} has {site.shape[2]} dims" for site in sites)
        raise InputError(f"{file.path}: {first} and {second}, expected as many, or they cannot be compared")
    counts = [_count_key(site, options) for site in sites]
    document = {key: count_document(count) for key, count in zip(keys, counts, strict=True)}
    if len(counts) == 2:
        document[COMPARISON] = comparison_document((keys[0], keys[1]), compare_dims(*counts))
    _write(document, options)


def _require_usable(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if options.compare_key == options.key:
        parser.error(f"argument --compare-key: {options.key} found, expected another key than --key")
    if options.compare_key is not None and COMPARISON in (options.key, options.compare_key):
        parser.error(f"argument --compare-key: a key named {COMPARISON} cannot be compared")
    if options.output and options.output.exists() and options.input.exists() and options.output.samefile(options.input):
        parser.error("argument --output: expected another file than --input")


def _count_key(site: SiteTensors, options: argparse.Namespace) -> LocationCount:
    shape = (site.shape[0], len(site.layers), *site.shape[1:])
    size = prod(shape) * itemsize(site.dtype)
    if not options.quiet:
        line = f"{site.site}: {shape} {DTYPES[site.dtype]}, {prod(shape):,} elements, {size / 2**20:,.1f} MiB"
        print(line, file=sys.stderr, flush=True)
    passes = 2 if options.iqr_samples or site.dtype == "F32" else 1
    with byte_bar(f"count {site.site}", size * passes, disable=options.quiet) as bar:
        return count_locations(
            [site],
            LocationRule(options.threshold, options.inclusive, options.min_layer_fraction),
            value_samples=options.iqr_samples,
            magnitude_samples=options.outlier_samples,
            threads=len(os.sched_getaffinity(0)),
            progress=bar.update,
        )


def _write(document: dict[str, Any], options: argparse.Namespace) -> None:
    tables = count_tables(document, options.input.name)
    if options.format != "table":
        write_text({"json": to_json, "csv": to_csv}[options.format](document), options.output)
    elif options.output is None:
        print_parts(tables, sys.stdout)
    else:
        write_text(plain_parts(tables), options.output)
    sys.stdout.flush()
