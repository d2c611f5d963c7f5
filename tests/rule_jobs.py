"""The jobs of a run, as Snakemake plans them from the rules, and each of them run in this process.

A run of a tiny model costs seconds, of which a process for each job would take most.
"""

import contextlib
import json
import os
import pickle
import runpy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
NAME, CONFIG = "tiny", "planned.yaml"
# What a rule may have beside a script, by Snakemake's names: a shell line, code of its own, an environment, a group.
BESIDE = (
    "shellcmd",
    "is_run",
    "notebook",
    "wrapper",
    "template_engine",
    "cwl",
    "conda_env",
    "container_img",
    "group",
    "_restart_times",
)
SAMPLE = {"sequences": 2, "tokens": 24}


@dataclass(frozen=True)
class Job:
    """A rule's script and what the rule tells it, with paths from the directory of the run; and what it asks for."""

    rule: str
    script: Path
    snakemake: SimpleNamespace
    temporary: tuple[str, ...]  # outputs that are removed once nothing needs them
    resources: tuple[dict[str, Any], ...]  # of the first attempt, the second, the third
    is_local: bool  # runs where Snakemake runs, also on a cluster
    beside: tuple[str, ...]  # what its rule has of `BESIDE`

    def run(self) -> str | None:
        """Run it here, in the directory of the run; returns its `error:` line, or None where there is none.

        What a script lets through, and a traceback in its log, are errors of another kind: they are raised.
        """
        for path in (*self.snakemake.output, *self.snakemake.log):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            runpy.run_path(str(self.script), init_globals={"snakemake": self.snakemake})
        except SystemExit as ended:
            log = Path(self.snakemake.log[0]).read_text()
            lines = log.splitlines()
            if ended.code != 1 or not lines or not lines[-1].startswith("error: ") or "Traceback" in log:
                raise RuntimeError(log) from None
            return lines[-1].removeprefix("error: ")
        return None


def run_jobs(jobs: Sequence[Job], folder: Path) -> str | None:
    """Run jobs in the directory of their run, up to the first that fails; returns its `error:` line."""
    with inside(folder):
        error = next((error for job in jobs if (error := job.run())), None)
        for path in (Path(path) for job in jobs for path in job.temporary):
            if error is None:
                path.unlink()
        return error


def plans(configs: dict[Path, dict[str, Any]], targets: Sequence[str] = ()) -> list[list[Job]]:
    """Jobs that runs need to reach their targets, in an order in which they can run, by the directories of the runs."""
    for folder, config in configs.items():
        (folder / CONFIG).write_text(yaml.safe_dump(config))
    # Snakemake sets up logging for its whole process, so it gets one of its own.
    command = [sys.executable, __file__, json.dumps([[str(folder) for folder in configs], list(targets)])]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found: list[list[Job]] = pickle.loads(done.stdout)
    return found


class Plans(dict[str | None, list[Job]]):
    """Jobs of a run of a model in `model/` or of its encoder or decoder, by part; planned where they are asked for."""

    def __init__(self, folder: Path):
        self._folder = folder
        (folder / "model").mkdir(parents=True, exist_ok=True)
        (folder / "model" / "config.json").write_text("{}")
        (folder / "text.txt").touch()

    def __missing__(self, part: str | None) -> list[Job]:
        catalog = {"models": {NAME: {"path": "model"}}, "corpora": {"text": {"files": ["text.txt"]}}}
        model = f"{NAME}.{part}" if part else NAME
        config = {"models": [model], "corpora": ["text"], "catalog": catalog, "sample": SAMPLE}
        [self[part]] = plans({self._folder: config})
        return self[part]


def _planned(folder: Path, targets: Sequence[str]) -> list[Job]:
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

    with inside(folder), SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=[Path(CONFIG)]),
            snakefile=ROOT / "Snakefile",
            workdir=folder,
        )
        workflow.dag(DAGSettings(targets=set(targets))).execute_workflow(executor="dryrun")
        dag = workflow._workflow.dag
        needed = [sorted(filter(dag.needrun, level), key=lambda job: job.rule.name) for level in dag.toposorted()]
        return [_job(job) for level in needed for job in level if not job.rule.norun]


def _job(job: Any) -> Job:
    told = SimpleNamespace(
        input=job.input._plainstrings(), output=job.output._plainstrings(), params=job.params, threads=job.threads,
        log=job.log._plainstrings(), wildcards=job.wildcards, rule=job.rule.name,
        config=job.rule.workflow.globals["config"],
    )  # fmt: skip
    resources = []
    for job.attempt in (1, 2, 3):
        resources.append({name: value for name, value in job.resources.items() if name[0] != "_"})
    beside = tuple(name for name in BESIDE if getattr(job.rule, name))
    script, is_local = ROOT / "scripts" / f"{job.rule.name}.py", job.rule.name in job.rule.workflow._localrules
    return Job(job.rule.name, script, told, tuple(map(str, job.temp_output)), tuple(resources), is_local, beside)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """With `folder` as the working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    import rule_jobs  # pickled under its name, not as __main__

    answer = os.fdopen(os.dup(1), "wb")  # what the workflow prints goes elsewhere
    os.dup2(2, 1)
    folders, wanted = json.loads(sys.argv[1])
    answer.write(pickle.dumps([rule_jobs._planned(Path(folder), wanted) for folder in folders]))
    answer.close()
