"""The command `outlier-features gains`: are the gains of norms all exactly 1, and what are they at some dims?"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from outlier_features.command.output import make_table, write_found
from outlier_features.errors import InputError
from outlier_features.files.layer_keys import DUMPED_GAINS
from outlier_features.files.model_source import SOURCE_FILE, source_of
from outlier_features.files.numpy_archive import open_tensors
from outlier_features.norms.describe_gains import all_exactly_one, describe_gains, gains_at
from outlier_features.norms.gains_in_file import gains_in_file
from outlier_features.norms.norm import Gain
from outlier_features.norms.norm_tables import site_of

Norms = dict[str, dict[str, Any]]  # by module
_NUMBERS = ("min", "max", "mean", "median")
_ANSWERS = {True: "yes", False: "no", None: "unknown"}


def add_gains(gains: argparse.ArgumentParser) -> None:
    gains.description = "Say whether the gains of norms are all exactly 1.0, and what they are at some dims."
    gains.set_defaults(run=_gains)
    source = gains.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, metavar="F", help=f"safetensors file with keys {DUMPED_GAINS}<module>")
    source.add_argument(
        "--model",
        metavar="NAME|DIR",
        help="a model's directory in transformers' format, or the name of a fetched model",
    )
    add = gains.add_argument
    add(
        "--keys",
        nargs="+",
        default=[],
        metavar="K",
        help="tensors (H,) or (L, H) of --input that are the gains; {layer} stands for a layer's number",
    )
    add("--resources", type=Path, default=Path("resources"), metavar="DIR", help="where models were fetched to")
    add("--part", choices=("encoder", "decoder"), help="with --model: the half of an encoder-decoder model")
    add(
        "--dims", type=_dims, default=[], metavar="D,D,...",
        help="dims to compare with all others, in the norms of the residual stream; of a file, in its widest norms",
    )  # fmt: skip
    add("--format", choices=("table", "json", "csv"), default="table")
    add("--output", type=Path, metavar="FILE", help="write there instead of to standard output")


def _dims(text: str) -> list[int]:
    dims = [int(one) for one in text.split(",")]
    if min(dims) < 0 or len(set(dims)) < len(dims):
        raise argparse.ArgumentTypeError(f"{text} found, expected different dims from 0, joined by commas")
    return dims


_dims.__name__ = "list of dims"  # argparse names the type in its message, where int() fails


def _gains(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if options.keys and options.model is not None:
        parser.error("argument --keys: needs --input")
    files = [path for path in (options.input, options.output) if path and path.exists()]
    if len(files) == 2 and files[0].samefile(files[1]):
        parser.error("argument --output: expected another file than --input")
    norms = _of_file(options) if options.model is None else _of_model(options)
    document = {"all_exactly_one": all_exactly_one(norms.values()), "norms": norms}
    long = {"": {"all_exactly_one": document["all_exactly_one"]}, **norms}  # a line of CSV has the norm and the number
    write_found(long if options.format == "csv" else document, lambda: _parts(document), options.format, options.output)


def _of_file(options: argparse.Namespace) -> Norms:
    gains = gains_in_file(open_tensors(options.input), options.keys)
    described = describe_gains(gains)
    widest = max(gain.stored.size for gain in gains.values())
    residual = {module: gain for module, gain in gains.items() if gain.stored.size == widest}
    return _with_dims(described, residual, options.dims)


def _of_model(options: argparse.Namespace) -> Norms:
    from outlier_features.norms.norms import norms_of  # imports torch

    found = norms_of(*_location(options.model, options.resources), options.part)
    if not found:
        raise InputError(f"{options.model}: found no norm among its modules, expected at least one")
    gains = {norm.module: norm.gain for norm in found if norm.gain is not None}
    unknown = dict.fromkeys(("dtype", "exactly_one", "all_one", *_NUMBERS))
    described = describe_gains(gains)
    norms = {
        norm.module: {
            **unknown,
            "shape": None if norm.shape is None else list(norm.shape),
            "size": norm.size,
            "parameterization": norm.parameterization,
            **described.get(norm.module, {}),
            "kind": norm.kind,
            "site": site_of(norm),
            "layer": norm.layer,
            "bias_max_abs": norm.bias_max_abs,
            "reason": norm.reason,
        }
        for norm in found
    }
    residual = {norm.module: norm.gain for norm in found if norm.residual and norm.gain is not None}
    return _with_dims(norms, residual, options.dims)


def _location(model: str, resources: Path) -> tuple[Path, bool]:
    """The model's directory, and whether its own code may run."""
    record = resources / "models" / model / SOURCE_FILE
    if (Path(model) / "config.json").is_file():
        return Path(model), False
    if not record.is_file():
        raise InputError(
            f"--model: found {model!r}, expected a directory with a config.json, or a name for which {record} exists"
        )
    source = source_of(record)
    return Path(source["location"]), bool(source["trust_remote_code"])


def _with_dims(norms: Norms, residual: Mapping[str, Gain], dims: list[int]) -> Norms:
    if not dims:
        return norms
    width = min((gain.stored.size for gain in residual.values()), default=0)
    if max(dims) >= width:
        raise InputError(f"--dims: found {max(dims)}, expected dims below {width}, the width of the norms")
    at = {module: {"dims": gains_at(gain, dims)} for module, gain in residual.items()}
    return {module: {**row, **at.get(module, {})} for module, row in norms.items()}


def _parts(document: Mapping[str, Any]) -> Iterator[Table | str]:
    norms: Norms = document["norms"]
    known = [row for row in norms.values() if row["exactly_one"] is not None]
    gains, ones = sum(row["size"] for row in known), sum(row["exactly_one"] for row in known)
    answer = _ANSWERS[document["all_exactly_one"]] if known or _undecided(norms) else "no norm has a gain"
    yield f"All gains exactly 1.0: {answer} ({ones:,} of {gains:,} gains, in {len(known):,} of {len(norms):,} norms)"
    of_model = any("site" in row for row in norms.values())
    columns = ("Module", *(("Site", "Kind", "Gain") if of_model else ()), "Shape", "Dtype", "Exactly 1", "Min", "Max",
               "Mean", "Median", *(("Bias max |b|",) if of_model else ()))  # fmt: skip
    caption = None if of_model else "Values are taken as the gains themselves; norms that multiply by 1 + w store w"
    yield make_table("Norm gains", columns, [_line(module, row, of_model) for module, row in norms.items()], caption)
    at = [
        (str(one["dim"]), module, _number(one["gain"]), f"{one['rank']:,} of {row['size']:,}", _number(one["ratio"]))
        for module, row in norms.items()
        for one in row.get("dims", [])
    ]
    if at:
        caption = "Rank of |gain|, 1 the largest; ratio of |gain| to the median of the dims that were not named"
        yield make_table("Gains at dims", ("Dim", "Module", "Gain", "Rank", "Ratio"), at, caption)
    for module in _undecided(norms):
        yield f"{module}: undecided, {norms[module]['reason']}"


def _undecided(norms: Norms) -> list[str]:
    return [module for module, row in norms.items() if row["parameterization"] is None]


def _line(module: str, row: Mapping[str, Any], of_model: bool) -> tuple[str, ...]:
    shape = "-" if row["shape"] is None else " x ".join(map(str, row["shape"]))
    ones = "-" if row["exactly_one"] is None else f"{row['exactly_one']:,} of {row['size']:,}"
    what = (row["site"] or "-", row["kind"] or "-", row["parameterization"] or "?") if of_model else ()
    bias = (_number(row["bias_max_abs"]),) if of_model else ()
    return (module, *what, shape, row["dtype"] or "-", ones, *(_number(row[name]) for name in _NUMBERS), *bias)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
