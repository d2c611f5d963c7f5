"""The search for super weights and the ablations, which are one job, against extraction: CPU seconds of whole jobs.

Of a finished run, or the default run, which is made first. Each job is a process of its own, with its imports and its
load of the model, and they run in turn; ratios are of medians. "whole" runs every block in every pass, on the same
sample; "begun" is what the project does, also with the sample that `ablate.cost` leaves.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
RUN, SOURCE = "results/smollm2-135m/python-docs", "resources/models/smollm2-135m/source.json"
NO_LIMIT = 1e9
JOBS = ("extraction", "whole", "begun", "begun, cost 1")


class Run:
    """The jobs on a run's files; each imports what it needs."""

    def __init__(self, run: Path, source: Path, folder: Path):
        import torch

        from outlier_features.dims.dims_schema import DIMS
        from outlier_features.files.tables import read_table

        torch.set_num_threads(1)
        self.run, self.source, self.folder = run, source, folder
        _, provenance = read_table(run / "dims.parquet", DIMS)
        self.sites, self.sequences = provenance["sites"], provenance["sequences"]
        self.loading: dict[str, Any] = {
            "dtype": provenance["dtype"], "device": "cpu", "attention": provenance["attention"], "threads": 1,
            "trust_remote_code": False, "part": provenance["part"], "placement": "one",
        }  # fmt: skip

    def extract(self) -> None:
        from outlier_features.extract.extract_activations import extract_activations

        extract_activations(
            self.source, self.run / "tokens.safetensors", self.folder / "activations.safetensors",
            self.folder / "losses.safetensors", self.folder / "neurons.safetensors",
            self.folder / "channels.safetensors", start=0, stop=self.sequences,
            sites=self.sites, batch_size=8, **self.loading,
        )  # fmt: skip

    def ablate(self, cost: float) -> None:
        from outlier_features.ablate.ablate_dims import ablate_dims
        from outlier_features.ablate.find_super_weights import find_super_weights
        from outlier_features.ablate.subject import Subject

        subject, found = Subject.fetched(self.source, **self.loading), self.folder / "super_weights.parquet"
        given = self.source, self.run / "tokens.safetensors", self.run / "dims.parquet"
        find_super_weights(
            subject, *given, ROOT / "workflow/published/super_weights.csv", found, length=96, threshold=50.0, rounds=20
        )
        ablate_dims(
            subject, *given, found, self.folder / "ablation.parquet", self.folder / "ablation_sequences.parquet",
            sequences=2, length=96, seeds=3, batch_size=8, cost=cost,
        )  # fmt: skip

    def do(self, job: str) -> None:
        if job == "extraction":
            self.extract()
        elif job == "whole":
            from outlier_features.model.prefixes import Prefixes

            with mock.patch.object(Prefixes, "start", lambda self, wanted: 0):
                self.ablate(NO_LIMIT)
        else:
            self.ablate(1.0 if job == "begun, cost 1" else NO_LIMIT)


def seconds(job: str, run: Path, source: Path) -> float:
    """CPU seconds of a job, with those of its start."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, "--run", str(run), "--source", str(source), "--job", job]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(run: Path, source: Path, repetitions: int) -> None:
    taken: dict[str, list[float]] = {job: [] for job in JOBS}
    for _ in range(repetitions):
        for job, times in taken.items():
            times.append(seconds(job, run, source))
            print(f"{job:16} {times[-1]:7.2f} s", flush=True)
    median = {job: statistics.median(times) for job, times in taken.items()}
    for job in JOBS[1:]:
        print(f"search and ablations, {job:14} / extraction {median[job] / median['extraction']:5.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="folder of a finished run's results")
    parser.add_argument("--source", type=Path, help="its model's source.json, whose location is below this folder")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--job", choices=JOBS, help="do this one alone, and measure nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.job:
            Run(arguments.run, arguments.source, folder).do(arguments.job)
            return
        if not arguments.run:
            made = subprocess.run(
                [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", "tables"],
                cwd=folder, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if made.returncode:
                sys.exit(made.stderr)
        run, source = arguments.run or folder / RUN, arguments.source or folder / SOURCE
        measure(run, source, arguments.repetitions)


if __name__ == "__main__":
    main()
