"""The jobs of a run with the files that each leaves, known from the configuration alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlier_features.dump.dumps import CORPUS, Dump
from outlier_features.former_outputs import FORMER
from outlier_features.model_name import split_name
from outlier_features.plan.jobs import GALLERY, chunk_ranges, has_gallery, jobs_of_run
from outlier_features.run.config import fetched_name
from outlier_features.run.run_places import corpus_of
from outlier_features.run.stages import STAGES

# What leaves only files on the way, which may be removed once the run is done.
BETWEEN = ("fetch_model", "fetch_corpus", *(rule for rule, stage in STAGES.items() if not stage.kept))
# What is made of all runs together.
_COMPARISON = {
    "compare_runs": ("comparison/dims.parquet", "comparison/compared_dims.parquet"),
    "compare_models": ("comparison/models.parquet", "comparison/failures.parquet"),
    "compare_revisions": ("comparison/first_steps.parquet",),
}


@dataclass(frozen=True)
class PlannedJob:
    """A job: its rule, its wildcards' values, its chunk if its rule has one for each, and the files that it leaves."""

    rule: str
    wildcards: tuple[str, ...]
    chunk: str | None
    files: tuple[Path, ...]
    results: Path

    @property
    def log(self) -> Path:
        return Path(f"{self.results / 'logs' / self._place}.log")

    @property
    def benchmark(self) -> Path:
        return Path(f"{self.results / 'benchmarks' / self._place}.tsv")

    @property
    def comment(self) -> str:
        """What Snakemake calls it in SLURM's queue."""
        parts = [f"rule_{self.rule}", *(["wildcards", *self.wildcards] if self.wildcards else [])]
        return "_".join(parts).replace("/", "_")

    @property
    def is_done(self) -> bool:
        """Whether its files are there, of this run: what stays of one whose successor failed is of a former one."""
        return all(file.exists() and file.stat().st_mtime != FORMER for file in self.files)

    @property
    def _place(self) -> Path:
        return Path(self.rule, *self.wildcards)


def jobs_of(config: Mapping[str, Any], model: str, corpus: str, dumps: Mapping[str, Dump]) -> Iterator[PlannedJob]:
    """Of a run, with what fetches its model and corpus; of a dump that cannot be read, not among `dumps`, the first."""
    results, models = Path(config["results"]), config["catalog"]["models"]
    yield fetch_job(config, "fetch_model", fetched_name(model, models[model]))
    if corpus != CORPUS:
        yield fetch_job(config, "fetch_corpus", corpus_of(corpus))
    dump = dumps.get(model)
    if corpus == CORPUS and dump is None:
        files = tuple(results / model / corpus / name for name in STAGES["describe_dump"].files)
        yield PlannedJob("describe_dump", (model,), None, files, results)
        return
    counts, chunks = jobs_of_run(config, model, corpus, dump), [*chunk_ranges(config, corpus, dump)]
    sites = sorted({*config["sites"], *(site for one in dumps.values() for site in one.sites)})
    for rule, stage in STAGES.items():
        if not counts[rule]:
            continue
        names, own = stage.files, (model,) if stage.of == "dump" else (model, corpus)
        if not stage.has_chunks:
            yield PlannedJob(rule, own, None, tuple(results / model / corpus / name for name in names), results)
            continue
        for chunk in chunks:
            found = [
                name.format(site=site, chunk=chunk) for name in names for site in (sites if "{site}" in name else [""])
            ]
            yield PlannedJob(
                rule, (*own, chunk), chunk, tuple(results / model / corpus / name for name in found), results
            )
    if counts[GALLERY]:
        yield PlannedJob(
            GALLERY, (model, corpus), None, (results / "gallery" / model / corpus / "manifest.json",), results
        )


def fetch_job(config: Mapping[str, Any], rule: str, name: str) -> PlannedJob:
    """What fetches a model or a corpus."""
    folder = Path(config["resources"]) / {"fetch_model": "models", "fetch_corpus": "corpora"}[rule] / name
    files = ("source.json",) if rule == "fetch_model" else ("source.json", "documents.parquet")
    return PlannedJob(rule, (name,), None, tuple(folder / file for file in files), Path(config["results"]))


def jobs_beside(config: Mapping[str, Any], runs: Sequence[tuple[str, str]]) -> Iterator[PlannedJob]:
    """What is made of all runs together."""
    results = Path(config["results"])
    left_out = () if any(split_name(model)[1] for model, _ in runs) else ("compare_revisions",)
    for rule, names in _COMPARISON.items() if len(runs) > 1 else ():
        if rule not in left_out:
            yield PlannedJob(rule, (), None, tuple(results / name for name in names), results)
    if any(has_gallery(config, corpus) for _, corpus in runs):
        yield PlannedJob("list_galleries", (), None, (results / "gallery/index.html",), results)
    yield PlannedJob("render_report", (), None, (results / "report.html", results / "report"), results)
