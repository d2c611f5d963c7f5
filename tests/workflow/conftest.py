"""A copy of the workflow in a temporary directory, with tiny models and a text.

`Project.run` is a run of Snakemake; what is asked of numbers only runs the same jobs in this process (`run_here`).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from outlier_features.files.artifacts import read_json, write_json
from outlier_features.files.digest import sha256_of
from rule_jobs import plans, run_jobs
from soak import copy_project
from tiny_project import Run, tiny_bert, tiny_llama, tiny_moe


@dataclass
class Project:
    """A copy of the workflow and a config that selects the tiny Llama; `first` has what its first run left."""

    folder: Path
    config: dict
    first: Path

    def run(self, *arguments: str, **changes: object) -> Run:
        """Run Snakemake on the config with keys set, given as section__key."""
        self.write(**changes)
        return self.snakemake(*arguments, "--configfile", "mine.yaml")

    def write(self, **changes: object) -> None:
        """Write the config with keys set."""
        (self.folder / "mine.yaml").write_text(yaml.safe_dump(self.changed(**changes)))

    def changed(self, **changes: object) -> dict[str, Any]:
        """The config with keys set."""
        config: dict[str, Any] = yaml.safe_load(yaml.safe_dump(self.config))
        for key, value in changes.items():
            *path, last = key.split("__")
            place = config
            for name in path:
                place = place.setdefault(name, {})
            place[last] = value
        return config

    def snakemake(self, *arguments: str, **options: Any) -> Run:
        """Run Snakemake; `options` are those of `subprocess.run`, `env` is added to the environment."""
        command = [sys.executable, "-m", "snakemake", *arguments, "--cores", "2"]
        environment = {**os.environ, "PYTHONPATH": str(self.folder / "workflow"), **options.pop("env", {})}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, errors="replace", check=False,
            **options,
        )  # fmt: skip
        return Run(done.returncode, done.stdout + done.stderr)

    def run_here(self, *targets: str, **changes: object) -> None:
        """Run the jobs that Snakemake plans for the config with keys set, in this process; none may fail."""
        [jobs] = plans({self.folder: self.changed(**changes)}, targets)
        error = run_jobs(jobs, self.folder)
        assert error is None, error

    def record(self, *targets: str, **changes: object) -> None:
        """Have Snakemake take what `run_here` made for its own work, so that it plans what later changes ask for.

        All files of the run get a new time: it must share neither results nor resources with another.
        """
        done = self.run(*targets, "--touch", "--forceall", **changes)
        assert done.status == 0, done.output

    def planned(self, **changes: object) -> Run:
        return self.run("--dry-run", "--nocolor", **changes)

    def copy_to(self, folder: Path) -> "Project":
        """A copy of all of it, in which Snakemake knows what was run."""
        shutil.copytree(self.folder, folder, symlinks=True)
        move(self.folder, folder)
        return replace(self, folder=folder)

    def edit(self, module: str, text: str = "\n# edited\n") -> Callable[[], None]:
        """Append to a module of the library, as `scan/scan`; call the result to take it back."""
        path = self.folder / "workflow/outlier_features" / f"{module}.py"
        before, times = path.read_text(), path.stat()
        path.write_text(before + text)

        def undo() -> None:
            path.write_text(before)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

        return undo


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Project:
    """The project after a complete run, which one process of tests makes and each has a copy of."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    place = tmp_path_factory.mktemp("alone") if alone else tmp_path_factory.getbasetemp().parent
    finished = place / "finished"
    with FileLock(place / "finished.lock"):
        if not (place / "mine.yaml").exists():
            complete_run(finished)
            shutil.copy(finished / "mine.yaml", place)
    folder, first = tmp_path_factory.mktemp("copy") / "project", tmp_path_factory.mktemp("first")
    shutil.copytree(finished, folder, symlinks=True)
    move(finished, folder)
    for name in ("results", "resources"):
        shutil.copytree(folder / name, first / name, copy_function=os.link)
    return Project(folder, yaml.safe_load((place / "mine.yaml").read_text()), first)


def move(former: Path, folder: Path) -> None:
    """Have the copy of a project that has run say, wherever it names its own place, where it lies now."""
    source = folder / "resources/models/tiny/source.json"  # names where the model lies
    times, sha256 = source.stat(), sha256_of(source)
    write_json(source, {**read_json(source), "location": str(folder / "llama")})
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    for path in (folder / ".snakemake/metadata").iterdir():  # what jobs read of the workflow itself, and checksums
        text = path.read_text().replace(str(former), str(folder))
        path.write_text(text.replace(sha256, sha256_of(source)))


def complete_run(folder: Path) -> Project:
    """A run of Snakemake in a new copy of the workflow."""
    folder.mkdir()
    for name, make in (("llama", tiny_llama), ("bert", tiny_bert), ("moe", tiny_moe)):
        (folder / name).mkdir()
        make(folder / name)
    lines = [f"Line {i}: a lazy dog, dozing; <b>naïve</b> café № {i * i}." for i in range(200)]
    (folder / "text.txt").write_text("\n".join(lines))
    config = {
        "models": ["tiny"],
        "corpora": ["text"],
        "sample": {"sequences": 6, "tokens": 48},
        "extract": {"chunk_sequences": 4, "batch_size": 3, "threads": 2},
        "detect": {"max_density": 0.2},
        "catalog": {
            "models": {"tiny": {"path": "llama"}, "tiny-bert": {"path": "bert"}, "tiny-moe": {"path": "moe"}},
            "corpora": {"text": {"files": ["text.txt"]}},
        },
    }
    project = Project(folder, config, folder)
    # Compiles what counts, once, for this process and for the copies, which take numba's cache along.
    counted = [f"compiled/tiny/text/{name}" for name in ("layers.parquet", "locations.json")]
    project.run_here(*counted, results="compiled", resources="compiled/resources")
    shutil.rmtree(folder / "compiled")
    copy_project(folder)
    run = project.run("--skip-script-cleanup")
    assert run.status == 0, run.output
    return project
