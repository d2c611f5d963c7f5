"""The search for super weights and the ablations against extraction: passes that begin at a block beside whole ones.

Of a finished run, or the default run, which is made first. Loading the model is part of each, importing is not. Ratios
are of CPU seconds, medians of what was measured in turn in one process. "whole" runs every block in every pass, on the
same sample; "begun" is what the project does, also with the sample that `ablate.cost` leaves.
"""

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from outlier_features.ablate.ablate_dims import ablate_dims
from outlier_features.ablate.find_super_weights import find_super_weights
from outlier_features.ablate.super_weights import searched
from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.extract.extract_activations import extract_activations
from outlier_features.files.tables import read_table
from outlier_features.model.prefixes import Prefixes
from outlier_features.model.sites import Block, hooked

ROOT = Path(__file__).parents[1]
RUN, SOURCE = "results/smollm2-135m/python-docs", "resources/models/smollm2-135m/source.json"
NO_LIMIT = 1e9


class Run:
    """The rules' functions on a run's files."""

    def __init__(self, run: Path, source: Path, folder: Path):
        self.run, self.source, self.folder = run, source, folder
        weights, provenance = read_table(run / "super_weights.parquet", SUPER_WEIGHTS)
        self.rounds = len(weights) + 1
        self.sites, self.sequences = provenance["sites"], provenance["sequences"]
        self.loading: dict[str, Any] = {
            "dtype": provenance["dtype"], "device": "cpu", "attention": provenance["attention"], "threads": 1,
            "trust_remote_code": False, "part": provenance["part"], "placement": "one",
        }  # fmt: skip

    def extract(self) -> None:
        extract_activations(
            self.source, self.run / "tokens.safetensors", self.folder / "activations.safetensors",
            self.folder / "losses.safetensors", start=0, stop=self.sequences, sites=self.sites, batch_size=8,
            **self.loading,
        )  # fmt: skip

    def search(self) -> None:
        find_super_weights(
            self.source, self.run / "tokens.safetensors", self.run / "loss.parquet",
            ROOT / "workflow/published/super_weights.csv", self.folder / "super_weights.parquet", length=96,
            threshold=50.0, rounds=20, **self.loading,
        )  # fmt: skip

    def search_whole(self) -> None:
        """As many whole passes as the search has rounds, with its hooks."""

        def passes(loaded: Any, blocks: list[Block], ids: torch.Tensor, **given: Any) -> list[Any]:
            sites = [(name, b.sites[name]) for b in blocks if searched(b) for name in ("mlp_act", "mlp_down")]
            for _ in range(self.rounds):
                with hooked(sites, lambda _, x: x.abs().argmax()), torch.inference_mode():
                    loaded.base(ids)
            return []

        with mock.patch("outlier_features.ablate.find_super_weights.search_super_weights", passes):
            self.search()

    def ablate(self, cost: float = NO_LIMIT) -> None:
        ablate_dims(
            self.source, self.run / "tokens.safetensors", self.run / "dims.parquet",
            self.run / "super_weights.parquet", self.folder / "ablation.parquet",
            self.folder / "ablation_sequences.parquet", sequences=2, length=96, seeds=3, batch_size=8, cost=cost,
            **self.loading,
        )  # fmt: skip

    def ablate_whole(self) -> None:
        with mock.patch.object(Prefixes, "start", lambda self, wanted: 0):
            self.ablate()


def seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    with redirect_stderr(io.StringIO()):
        work()
    return time.process_time() - start


def measure(run: Run, repetitions: int) -> None:
    works: dict[str, Callable[[], None]] = {
        "extraction": run.extract,
        "search, whole": run.search_whole,
        "search, begun": run.search,
        "ablations, whole": run.ablate_whole,
        "ablations, begun": run.ablate,
        "ablations, begun, cost 1": lambda: run.ablate(1.0),
    }
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            taken[name].append(seconds(work))
            print(f"{name:28} {taken[name][-1]:7.2f} s", flush=True)
    median = {name: statistics.median(times) for name, times in taken.items()}
    for label, search, ablations in (
        ("whole passes", "search, whole", "ablations, whole"),
        ("begun at blocks", "search, begun", "ablations, begun"),
        ("begun, cost 1", "search, begun", "ablations, begun, cost 1"),
    ):
        ratios = [median[search], median[ablations], median[search] + median[ablations]]
        both = "  ".join(f"{ratio / median['extraction']:5.2f}" for ratio in ratios)
        print(f"{label:18} / extraction: search, ablations, both  {both}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="folder of a finished run's results")
    parser.add_argument("--source", type=Path, help="its model's source.json, whose location is below this folder")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not arguments.run:
            made = subprocess.run(
                [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", "tables"],
                cwd=folder, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if made.returncode:
                sys.exit(made.stderr)
        run, source = arguments.run or folder / RUN, arguments.source or folder / SOURCE
        measure(Run(run, source, folder), arguments.repetitions)


if __name__ == "__main__":
    main()
