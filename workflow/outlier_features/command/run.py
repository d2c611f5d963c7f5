"""The command `outlier-features run`: a model, from its name or its files to the report. It is Snakemake underneath."""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from outlier_features.command.configuration import resolved, shipped_catalog
from outlier_features.command.plan_tables import in_bytes
from outlier_features.command.run_snakemake import Ended, run_quietly, run_verbosely
from outlier_features.errors import InputError
from outlier_features.files.artifacts import read_json
from outlier_features.files.model_source import SOURCE_FILE
from outlier_features.files.tables import public_tables, read_table
from outlier_features.model_name import split_name
from outlier_features.plan.jobs import runs_of
from outlier_features.plan.plan_run import plan_run
from outlier_features.run.config import fetched_name
from outlier_features.run.local_models import LocalModels
from outlier_features.run.overlay import overlay_of, write_overlay
from outlier_features.run.run_places import corpus_of
from outlier_features.summary.facts import facts_in
from outlier_features.summary.first_words import SPOKEN_OF, first_words
from outlier_features.summary.in_short import in_short
from outlier_features.summary.summarize_run import SUMMARY_KEYS
from outlier_features.wording import capital, count
from outlier_features.workflow_files import SNAKEFILE

_PROFILES = SNAKEFILE.parent / "workflow/profiles"
_LINES = 5  # of findings


def add_run(run: argparse.ArgumentParser) -> None:
    run.description = (
        "Run the whole workflow on one model. What is wanted is written as an overlay, which plain Snakemake runs "
        "too; what is fetched and how long it may take is said before."
    )
    run.set_defaults(run=_run)
    add = run.add_argument
    add("model", metavar="MODEL", help="a name of the catalog; org/name on the hub, or org/name@revision, or "
        "org/name/file.gguf; a directory; a .gguf file; behind it .encoder or .decoder for one half")  # fmt: skip
    text = run.add_mutually_exclusive_group()
    text.add_argument("--text", nargs="+", type=Path, default=[], metavar="FILE", help="the text to run it on")
    text.add_argument("--corpus", metavar="NAME", help="a corpus of the catalog (default: python-docs)")
    add("--sequences", type=_positive, metavar="N", help="of the text (default: 16)")
    add("--tokens", type=_positive, metavar="N", help="of each sequence (default: 256)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the pass (default: float32, or the catalog's)")
    add("--results", type=Path, metavar="DIR", help="where the run lies (default: results)")
    add("--cores", type=_cores, metavar="N", help="of this machine (default: all)")
    add("--profile", metavar="DIR", help="of Snakemake, for a cluster; `slurm` is the one that comes with the workflow")
    add("--dry-run", action="store_true", help="write the overlay and say what the run will take, and run nothing")
    add("--verbose", action="store_true", help="show what Snakemake and its jobs say, not one line of progress")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 1")
    return int(text)


def _cores(text: str) -> str:
    return text if text == "all" else str(_positive(text))


def _profile(given: str) -> Path:
    """Where a profile of Snakemake lies. A directory that is not there Snakemake would do without."""
    own = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "snakemake"
    for place in (_PROFILES / given, Path(given), own / given):
        if place.is_file() or [*place.glob("config*.yaml")]:
            return place
    known = ", ".join(sorted(path.name for path in _PROFILES.iterdir()))
    raise InputError(f"--profile: found {given!r}, expected a directory that has a config.yaml, or one of {known}")


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    # As it is now: the plan loads transformers, which is kept from the hub for the rest of the process.
    environment = dict(os.environ)
    profile = _profile(options.profile) if options.profile else None
    overlay = overlay_of(
        options.model,
        shipped_catalog(),
        texts=options.text,
        corpus=options.corpus,
        sample={"sequences": options.sequences, "tokens": options.tokens},
        dtype=options.dtype,
        results=options.results,
    )
    config = resolved([overlay])
    LocalModels.of(config["catalog"]["models"])
    path = write_overlay(overlay, Path(), f"snakemake --cores all --snakefile {SNAKEFILE} --configfile")
    plan = plan_run(config)
    for line in (*_plan(config, plan), f"overlay: {path}, yours to keep and change"):
        print(line, flush=True)
    if options.dry_run:
        return
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--configfile", str(path),
               "--rerun-incomplete"]  # fmt: skip
    if profile:
        command += ["--workflow-profile", str(profile)]
    if options.cores or not profile:
        command += ["--cores", options.cores or "all"]
    if options.verbose:
        ended = run_verbosely(command, environment)
    else:
        ended = run_quietly(command, environment, Path(config["results"]) / "logs/snakemake.log", _seconds(plan))
    if ended.status:
        raise InputError(_failure(ended))
    report = Path(config["results"]) / "report.html"
    if not report.is_file():  # but an object in the store that a profile names
        said = ended.log.read_text(encoding="utf-8", errors="replace").splitlines() if ended.log else []
        print(*[line for line in said if line.startswith("The report is ")][-1:], sep="\n")
        return
    for line in _findings(config):
        print(line)
    print(f"report: {report}")


def _plan(config: Mapping[str, Any], plan: Mapping[str, Any]) -> Iterator[str]:
    """What the run will take, in a few lines."""
    models, loaded = config["catalog"]["models"], {}
    for name, source in models.items():
        known = plan["models"][split_name(name)[0]]
        size = f"{known['parameters']:,} parameters, " if "parameters" in known else ""
        whole = fetched_name(name, source)  # of both halves the same: it is fetched once, and loaded as a whole
        loaded[whole] = f"{size}{_fetched(whole, source, Path(config['resources']), known.get('bytes_of_files'))}"
    yield from (f"{whole}: {said}" for whole, said in loaded.items())
    for one in plan["runs"]:
        model, _, label = one["run"].partition("/")
        text = corpus_of(label) if len(models) == 1 else f"{model} on {corpus_of(label)}"
        size = f"at most {count(one['sequences'], 'sequence')} of {count(one['tokens'], 'token')}"
        yield f"{text}: {size}; {_time(one['expected'])}"
    yield f"{count(sum(plan['jobs'].values()), 'job')}, fewer where some are done"


def _time(expected: Mapping[str, Any] | None) -> str:
    if expected is None:
        return "how long it takes is not known before a run has left its times in these results"
    bound = "more than" if expected["unknown"] else "roughly" if expected["scaled"] else "about"
    source = f"in proportion to {expected['measured']}" if expected["scaled"] else "as before"
    return f"{bound} {_clock(3600 * expected['hours'])}, one job after the other, {source}"


def _fetched(name: str, source: Mapping[str, Any], resources: Path, size: int | None) -> str:
    if (resources / "models" / name / SOURCE_FILE).is_file():
        return "fetched before"
    much = "" if size is None else f", {in_bytes(size)}"
    if hub := source.get("hub", source.get("transformer_lens")):
        return f"to be fetched from the hub, {hub}{much}"
    if "pypi" in source:
        wheels = [source["pypi"]] if isinstance(source["pypi"], str) else source["pypi"]
        return f"to be fetched from the package index, {count(len(wheels), 'wheel')}{much}"
    use = "to be converted from" if source["path"].endswith(".gguf") else "used where it lies,"
    return f"{use} {source['path']}{much}"


def _seconds(plan: Mapping[str, Any]) -> dict[str, float]:
    """Of a job by rule, where an earlier run was measured."""
    found: dict[str, float] = {}
    for one in plan["runs"]:
        if one["expected"]:
            found |= {rule: took / one["jobs"][rule] for rule, took in one["expected"]["seconds"].items()}
    return found


def _failure(ended: Ended) -> str:
    if ended.errors:
        return ended.errors[0] + (f" (and {len(ended.errors) - 1} more like it)" if len(ended.errors) > 1 else "")
    return f"Snakemake ended with status {ended.status}" + (f"; log: {ended.log}" if ended.log else "")


def _findings(config: Mapping[str, Any]) -> Iterator[str]:
    for run in runs_of(config):
        folder = Path(config["results"]).joinpath(*run)
        summary = read_json(folder / "summary.json", *SUMMARY_KEYS)
        tables = {
            name: read_table(folder / f"{name}.parquet", public_tables()[name])[0]
            for name in SPOKEN_OF
            if name in summary["tables"]
        }
        short, words = in_short(summary, facts_in(summary)), first_words(summary, tables)
        profiles = [f"Dimension {one.dim}: {one.facts[0].short}" for one in short.profiles if one.facts]
        yield from [words.sentence, *words.notes, *profiles, *short.answer][: _LINES - 1]
        yield capital("; ".join(f"{one.what}: {one.value}" for one in words.numbers))


def _clock(seconds: float) -> str:
    minutes = max(round(seconds / 60), 1)
    return count(minutes, "minute") if minutes < 120 else f"{seconds / 3600:.2g} hours"
