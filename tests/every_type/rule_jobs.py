"""The jobs of a run, as Snakemake plans them from the rules, and each of them run in this process.

A run of a tiny model costs seconds, of which a process for each job would take most.
"""

import contextlib
import os
import pickle
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
NAME, CONFIG = "tiny", "mine.yaml"
SAMPLE = {"sequences": 2, "tokens": 24}


@dataclass(frozen=True)
class Job:
    """A rule's script and what the rule tells it, with paths from the directory of the run."""

    rule: str
    script: Path
    snakemake: SimpleNamespace

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


def plan(folder: Path, model: str, **config: Any) -> list[Job]:
    """Jobs up to the report, in an order in which they can run, for a `model` in `model/` and the text in `text.txt`.

    config   further keys of the configuration
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").touch()
    catalog = {"models": {NAME: {"path": "model"}}, "corpora": {"text": {"files": ["text.txt"]}}}
    (folder / CONFIG).write_text(yaml.safe_dump({"models": [model], "corpora": ["text"], "catalog": catalog, **config}))
    # Snakemake sets up logging for its whole process, so it gets one of its own.
    command = [sys.executable, __file__, str(folder / "jobs.pickle")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[Job] = pickle.loads((folder / "jobs.pickle").read_bytes())
    return found


class Plans(dict[str | None, list[Job]]):
    """Jobs of a run of a model in `model/` or of its encoder or decoder, by part; planned where they are asked for."""

    def __init__(self, folder: Path):
        self._folder = folder
        (folder / "model").mkdir(parents=True, exist_ok=True)
        (folder / "model" / "config.json").write_text("{}")

    def __missing__(self, part: str | None) -> list[Job]:
        self[part] = plan(self._folder, f"{NAME}.{part}" if part else NAME, sample=SAMPLE)
        return self[part]


def _planned() -> list[Job]:
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings

    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=[Path(CONFIG)]),
            snakefile=ROOT / "Snakefile",
            workdir=Path.cwd(),
        )
        workflow.dag().execute_workflow(executor="dryrun")
        levels = workflow._workflow.dag.toposorted()
        return [_job(job) for level in levels for job in sorted(level, key=lambda job: job.rule.name) if job.is_script]


def _job(job: Any) -> Job:
    told = SimpleNamespace(
        input=job.input._plainstrings(), output=job.output._plainstrings(), params=job.params, threads=job.threads,
        log=job.log._plainstrings(), wildcards=job.wildcards, rule=job.rule.name,
    )  # fmt: skip
    return Job(job.rule.name, ROOT / "scripts" / f"{job.rule.name}.py", told)


@contextlib.contextmanager
def inside(folder: Path) -> Any:
    """With `folder` as the working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import rule_jobs  # pickled under its name, not as __main__

    Path(sys.argv[1]).write_bytes(pickle.dumps(rule_jobs._planned()))
