"""A model in hand measured as the workflow measures one: the same stages, in a directory of their own."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from outlier_features.command.configuration import resolved
from outlier_features.cores import usable_cores
from outlier_features.detect.detection import DetectionFiles, DetectionSettings
from outlier_features.detect.summarize_layers import summarize_layers
from outlier_features.dims.analyze_emergence import analyze_emergence
from outlier_features.dims.filter_systematic import filter_systematic
from outlier_features.dims.write_mask import write_mask
from outlier_features.errors import InputError
from outlier_features.files.artifacts import write_json
from outlier_features.model.loading import Part
from outlier_features.notebook.as_it_was import hub_left_alone, in_evaluation
from outlier_features.notebook.run import SUMMARY, Run
from outlier_features.rules.configured import counted_at, scaled_at
from outlier_features.summary.summarize_run import summarize_run
from outlier_features.tokens.tokens import Tokens
from outlier_features.workflow_files import MASK_SCHEMA

if TYPE_CHECKING:
    from torch import nn

    from outlier_features.notebook.subjects import Subject

LOG = "measure.log"
_SECTIONS = ("sites", "rules", "detect", "sensitivity")
_TABLES = (
    "layers",
    "distribution",
    "site_positions",
    "pairs",
    "dims",
    "sensitivity",
    "massive",
    "positions",
    "emergence",
)


def measure(
    model: "nn.Module",
    inputs: Any,
    *,
    mask: Any = None,
    special: Any = None,
    first_token: Literal["special", "ordinary"] = "special",
    tokenizer: Any = None,
    part: Part | None = None,
    blocks: str | Sequence[str] | None = None,
    config: Mapping[str, Any] | None = None,
    name: str | None = None,
    directory: str | Path | None = None,
) -> Run:
    """Run `inputs` through `model` once and apply the rules: the run that the workflow would have left, without what
    takes further passes (origins, attention, ablation, neurons, the surface).

    model         a transformers model that reads token ids; or any module whose blocks lie in a list
    inputs        token ids (N, T), lists of them, what a tokenizer returns, or a `Run`, whose sequences are taken; of
                  another module its arguments, each tensor with a row a sequence: a tensor, a tuple or a mapping
    mask          (N, T), true where a position is no padding, which must come last; by itself the `attention_mask`
    special       (N, T), true at special tokens; by itself `special_tokens_mask`, or what `tokenizer` says
    first_token   special: the first position is left out of population `without_first`; ordinary: it is not
    tokenizer     a fast one: names tokens in tables and figures
    part          `encoder` or `decoder` of an encoder-decoder model that reads token ids
    blocks        the path of the list of blocks, or paths of blocks, where they are not to be found by themselves; the
                  model is then called with `inputs` as they are
    config        `sites`, `rules`, `detect`, `sensitivity`, as an overlay of the workflow has them (docs/config.md)
    name          of the model, in tables and figures
    directory     a new one for the files; a temporary one, which is removed with the run, unless given

    The model is run where it lies, in evaluation mode, and left in the mode that it was in. On a CPU a sequence is run
    for itself, with torch's threads as they are: on these the last bits of a product may depend.

    Raises `InputError` where the model or its inputs cannot be used, or an activation is not finite.
    """
    with hub_left_alone():
        from outlier_features.notebook.subjects import subject_of
    known = config or {}
    if unknown := sorted(set(known) - {*_SECTIONS}):
        raise InputError(f"config: found {unknown[0]!r}, expected keys among {', '.join(_SECTIONS)}")
    settings = resolved([known])
    place, keep = _place(directory)
    shown = sys.stderr
    with in_evaluation(model), (place / LOG).open("a", encoding="utf-8") as log, redirect_stderr(log):
        record = _record(model, name)
        write_json(place / "source.json", record)
        facts = {
            "model": record["location"],
            "model_origin": record["origin"],
            "model_revision": record["revision"],
            "first_token": first_token,
        }
        batch_size = settings["extract"]["batch_size"]
        subject = subject_of(
            model, inputs, mask=mask, special=special, tokenizer=tokenizer, part=part, blocks=blocks, facts=facts,
            batch_size=batch_size,
        )  # fmt: skip
        with tqdm(total=len(subject.tokens.tokens), desc="measure", unit="seq", file=shown, mininterval=1.0) as bar:
            _run_stages(subject, place, settings, bar.update)
    return Run(place, keep)


def _place(directory: str | Path | None) -> tuple[Path, object]:
    """Where the files are to lie, and what removes them when it goes."""
    if directory is None:
        temporary = tempfile.TemporaryDirectory(prefix="outlier-features-")
        return Path(temporary.name), temporary
    place = Path(directory)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"directory: found {place}, which is not empty, expected a new one")
    place.mkdir(parents=True, exist_ok=True)
    return place, None


def _record(model: "nn.Module", name: str | None) -> dict[str, Any]:
    """What stands for the record of a fetch."""
    config = getattr(model, "config", None)
    from_where = getattr(config, "name_or_path", "") or type(model).__name__
    return {
        "kind": "in hand",
        "location": name or Path(from_where).name,
        "origin": f"{type(model).__name__} in hand" + (f", from {from_where}" if config is not None else ""),
        "revision": "in hand",
        "files": {},
    }


def _run_stages(subject: "Subject", place: Path, settings: Mapping[str, Any], told: Any) -> None:
    """What Snakemake runs, of one chunk that holds the whole run."""
    rules, sites, floors = settings["rules"], sorted(settings["sites"]), settings["detect"]["floors"]
    tokens, texts, statistics = place / "tokens.safetensors", place / "texts.parquet", place / "statistics.safetensors"
    subject.tokens.write(tokens, texts, subject.texts)
    run = Tokens.read(tokens)
    last = len(run.tokens) - 1
    chunk = f"{0:0{len(str(last))}}-{last}"
    names = ("scaled_hits", "counted_pairs", "counted_positions")
    files = DetectionFiles(
        {site: place / "hits" / site / f"{chunk}.parquet" for site in sites},
        **{name: place / name / f"{chunk}.parquet" for name in names},
        statistics=place / "statistics" / f"{chunk}.safetensors",
    )
    for path in (*files.hits.values(), *(path for path in vars(files).values() if isinstance(path, Path))):
        path.parent.mkdir(parents=True, exist_ok=True)
    wanted = DetectionSettings(
        {site: floors[site] for site in sites}, settings["detect"]["max_density"], counted_at(rules),
        scaled_at(rules, sites),
    )  # fmt: skip
    subject.count(run, place, files, wanted, usable_cores(os.cpu_count() or 1), told)
    table = {name: place / f"{name}.parquet" for name in _TABLES}
    of_layers = (table[name] for name in ("layers", "distribution", "site_positions"))
    summarize_layers([files.statistics], statistics, *of_layers)
    filter_systematic(
        {site: [path] for site, path in files.hits.items()},
        [files.scaled_hits], [files.counted_pairs], [files.counted_positions], statistics, tokens, texts,
        *(table[name] for name in ("pairs", "sensitivity", "massive", "positions")),
        rules=rules, grid=settings["sensitivity"],
    )  # fmt: skip
    analyze_emergence(table["pairs"], statistics, table["dims"], table["emergence"])
    table |= {name: place / f"{name}.parquet" for name in subject.add_tables(place, str(place / LOG))}
    summarize_run(tokens, place / "source.json", None, table, place / SUMMARY)
    write_mask(tokens, table["dims"], table["massive"], None, place / "mask.json", schema=MASK_SCHEMA)
