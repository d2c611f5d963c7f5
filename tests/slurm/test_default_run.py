"""The default run on a real SLURM: cancelled and gone on with, out of memory, out of time; by what accounting says."""

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import polars as pl
import pytest

from cluster import CPU_NODE, CPU_PARTITION, GPU_NODE, GPU_PARTITION, Cluster, running_cluster

ROOT = Path(__file__).parents[2]
RUN = Path("results/smollm2-135m/python-docs")
FIELDS = ("JobIDRaw", "Comment", "State", "Partition", "NodeList", "ReqMem", "TimelimitRaw", "AllocTRES", "Elapsed")
OUT_OF_MEMORY = 100  # MB, less than Snakemake takes by itself
PATIENCE = 1800.0
RULES = re.findall(
    r"^rule (\w+):\n(.*?)(?=^\S|\Z)",
    "".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk"))),
    re.DOTALL | re.MULTILINE,
)
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A row of accounting. `name` has rule and wildcards, `memory` is in MB, `limit` in minutes."""

    number: int
    name: str
    rule: str
    state: str
    partition: str
    node: str
    memory: int
    limit: int
    gpus: int


@dataclass
class Project:
    """A copy of the workflow, and the cluster that it is to run on."""

    folder: Path
    cluster: Cluster

    def start(self, name: str, *arguments: str) -> "Snakemake":
        # As in docs/cluster.md; but it looks at its jobs more often.
        command = [
            sys.executable, "-m", "snakemake", "--workflow-profile", "workflow/profiles/slurm",
            "--slurm-partition-config", str(self.cluster.partitions),
            "--slurm-init-seconds-before-status-checks", "5", *arguments,
        ]  # fmt: skip
        environment = {**self.cluster.environment, "PYTHONPATH": str(self.folder / "workflow")}
        log = self.folder / f"{name}.log"
        print(f"{time.strftime('%X')} {name}: snakemake {' '.join(command[3:])}", flush=True)
        with log.open("w") as file:
            return Snakemake(subprocess.Popen(command, cwd=self.folder, env=environment, stdout=file, stderr=file), log)

    def jobs(self) -> list[Job]:
        """All jobs of the cluster, in the order in which they were handed in."""
        text = self.cluster.command("sacct", "-X", "--parsable2", "--noheader", f"--format={','.join(FIELDS)}")
        jobs = []
        for line in text.splitlines():
            row = dict(zip(FIELDS, line.split("|"), strict=True))
            rule = re.fullmatch(r"rule_(\w+?)(_wildcards_.*)?", row["Comment"])
            memory = re.fullmatch(r"(\d+)M", row["ReqMem"])
            assert rule and memory, row
            gpus = re.search(r"gres/gpu=(\d+)", row["AllocTRES"])
            jobs.append(
                Job(
                    int(row["JobIDRaw"]), row["Comment"], rule[1], row["State"], row["Partition"], row["NodeList"],
                    int(memory[1]), int(row["TimelimitRaw"]), int(gpus[1]) if gpus else 0,
                )
            )  # fmt: skip
        return sorted(jobs, key=lambda job: job.number)

    def running_job(self, rule: str) -> int:
        """Wait until a job of the rule runs."""

        def number() -> int | None:
            queue = self.cluster.command("squeue", "--noheader", "--states=running", "--format=%i %k").splitlines()
            found = [line.split()[0] for line in queue if line.split()[1].startswith(f"rule_{rule}")]
            return int(found[0]) if found else None

        return wait_for(number, f"running job of {rule}")


@dataclass
class Snakemake:
    process: "subprocess.Popen[bytes]"
    log: Path

    def wait(self) -> str:
        """What it printed, once it has ended."""
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
        return self.log.read_text()


def wait_for(find: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if (found := find()) is not None:
            return found
        time.sleep(0.5)
    raise TimeoutError(f"no {what} in {PATIENCE:.0f} s")


@dataclass
class History:
    """What became of three runs, one after the other, with the state of the files after the first."""

    project: Project
    cancelled: Snakemake
    files_after_cancelling: set[str]
    jobs_of_cancelled: list[Job]
    resumed: Snakemake
    again: Snakemake
    jobs: list[Job]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    folder = tmp_path_factory.mktemp("project")
    for name in ("Snakefile", "config.yaml", "docs", "profiles", "rules", "scripts", "workflow"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / name)
    with running_cluster() as cluster:
        project = Project(folder, cluster)
        cancelled = project.start("cancelled", "--retries", "0")
        job = project.running_job("extract_activations")
        wait_for(lambda: next(folder.glob("results/logs/extract_activations/*/*/*.log"), None), "script at work")
        cluster.command("scancel", str(job))
        print(f"{time.strftime('%X')} cancelled job {job}, extract_activations", flush=True)
        cancelled.wait()
        files = {str(path.relative_to(folder)) for path in (folder / "results").rglob("*") if path.is_file()}
        jobs_of_cancelled = project.jobs()

        resumed = project.start(
            "resumed",
            "--set-resources",
            f"summarize_layers:mem_mb={OUT_OF_MEMORY} if attempt == 1 else 2000",
            "measure_loss:runtime=1 if attempt == 1 else 15",
        )
        job = project.running_job("measure_loss")
        cluster.command("scancel", "--signal=STOP", "--full", str(job))
        print(f"{time.strftime('%X')} stopped job {job}, measure_loss, until its time is over", flush=True)
        resumed.wait()
        again = project.start("again")
        again.wait()
        print(cluster.command("sacct", "-X", "--units=M", "--format=JobID%6,Comment%70,State%20,Partition%9,NodeList%8,"
                              "ReqMem,Timelimit,AllocTRES%45,Elapsed"))  # fmt: skip
        yield History(project, cancelled, files, jobs_of_cancelled, resumed, again, project.jobs())


def test_a_cancelled_job_fails_by_name_and_leaves_nothing_that_counts(history):
    assert history.cancelled.process.returncode == 1
    said = history.cancelled.log.read_text()
    assert "Error in rule extract_activations" in said and "SLURM status is: 'CANCELLED'" in said
    job = next(job for job in history.jobs_of_cancelled if job.rule == "extract_activations")
    assert job.state.startswith("CANCELLED")
    assert f"/{job.number}.log" in said  # SLURM's log of the job, by its path
    assert str(RUN / "tokens.safetensors") in history.files_after_cancelling
    left = [Path(name) for name in history.files_after_cancelling if {"activations", "losses"} & set(Path(name).parts)]
    assert all(path.name.startswith(".") and path.name.endswith(".tmp") for path in left)


def test_the_next_run_goes_on_where_it_was_cancelled(history):
    assert history.resumed.process.returncode == 0, history.resumed.log.read_text()[-3000:]
    completed = Counter(job.name for job in history.jobs if job.state == "COMPLETED")
    assert set(completed.values()) == {1}  # what the first run completed was not run again
    assert set(completed) == {job.name for job in history.jobs}
    assert (history.project.folder / "results/report.html").stat().st_size > 10**6


def test_a_third_run_has_nothing_to_do(history):
    assert "Nothing to be done" in history.again.log.read_text()
    assert history.again.process.returncode == 0


def test_the_tables_are_those_of_the_default_run(history):
    dims = pl.read_parquet(history.project.folder / RUN / "dims.parquet")
    assert 507 in dims.filter(pl.col("selected"), rule="massive", population="all")["dim"]


def test_jobs_that_run_a_model_are_given_a_gpu_where_there_are_some_and_no_others(history):
    on_gpu = {name for name, body in RULES if "gpu=model_gpus" in body}
    assert "extract_activations" in on_gpu
    for job in history.jobs:
        expected = (GPU_PARTITION, GPU_NODE, 1) if job.rule in on_gpu else (CPU_PARTITION, CPU_NODE, 0)
        assert (job.partition, job.node, job.gpus) == expected


def test_what_fetches_is_no_job(history):
    assert {"fetch_model", "fetch_corpus"}.isdisjoint(job.rule for job in history.jobs)
    assert (history.project.folder / "resources/models/smollm2-135m/source.json").exists()


def test_a_job_out_of_memory_is_given_more_memory_and_more_time(history):
    first, second = (job for job in history.jobs if job.rule == "summarize_layers")
    assert first.state in ("FAILED", "OUT_OF_MEMORY") and second.state == "COMPLETED"
    assert (first.memory, second.memory) == (OUT_OF_MEMORY, 2000)
    assert second.limit == 2 * first.limit
    log = (
        history.project.folder
        / f".snakemake/slurm_logs/rule_summarize_layers/smollm2-135m_python-docs/{first.number}.log"
    )
    assert "exceeded memory limit" in log.read_text()


def test_a_job_out_of_time_is_given_more_time_and_more_memory(history):
    first, second = (job for job in history.jobs if job.rule == "measure_loss")
    assert (first.state, second.state) == ("TIMEOUT", "COMPLETED")
    assert (first.limit, second.limit) == (1, 15)
    assert second.memory == 2 * first.memory
    assert "SLURM status is: 'TIMEOUT'" in history.resumed.log.read_text()
