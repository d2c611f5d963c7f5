"""How far each run of a configuration has come, from its files, its logs and the processes at work."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from outlier_features.plan.jobs import runs_of
from outlier_features.run.failure import WITHOUT_A_WORD
from outlier_features.run.local_models import LocalModels
from outlier_features.run.orphans import Process, can_be_found, jobs_of, orphaned_jobs, running_snakemakes
from outlier_features.run.recovery import lock_holder, running_on_cluster, what_is_left
from outlier_features.stage_log import last_word
from outlier_features.status import planned_jobs
from outlier_features.status.planned_jobs import BETWEEN, PlannedJob

Document = dict[str, Any]
DONE, RUNNING, FAILED, MISSING = "done", "running", "failed", "missing"


def status_of(config: Mapping[str, Any], directory: Path) -> Document:
    """The state of a resolved configuration's runs, whose Snakemake is or was started in `directory`.

    Nothing is written, and a run may be at work. A run is `done` if every file that is asked of it is there, `running`
    if a job of it is at work now, `failed` if the last job at a file that is not there failed, and `missing` otherwise.
    Whether files are as the configuration now wants them is not looked at: `snakemake --dry-run` says that.
    """
    at_work = _AtWork.in_directory(directory)
    dumps = LocalModels.of(config["catalog"]["models"]).dumps
    runs = runs_of(config)
    described = {f"{model}/{corpus}": planned_jobs.jobs_of(config, model, corpus, dumps) for model, corpus in runs}
    found = [{"run": name, **_describe([*jobs], at_work)} for name, jobs in described.items()]
    return {
        "at_work": at_work.described,
        "note": at_work.note,
        "runs": found,
        "together": _describe([*planned_jobs.jobs_beside(config, runs)], at_work),
    }


@dataclass(frozen=True)
class _AtWork:
    """What is at work.

    began      of the Snakemake, seconds from the epoch; None where none is at work
    jobs       its jobs on this machine
    comments   those that a cluster runs, as Snakemake calls them
    left       jobs whose Snakemake is gone
    """

    described: Document | None
    note: str | None = None
    began: float | None = None
    jobs: Sequence[Process] = ()
    comments: Sequence[str] = ()
    left: Sequence[Process] = ()

    @classmethod
    def in_directory(cls, directory: Path) -> "_AtWork":
        holder = lock_holder(directory)
        if holder is None:
            return cls(None, _note(directory), left=orphaned_jobs(directory))
        began = holder.began()
        described = {"process": holder.number, "since": _time(began)}
        return cls(described, None, began, jobs_of(holder), running_on_cluster(directory))

    def since(self, job: PlannedJob) -> tuple[bool, float | None]:
        """Whether a job is at work, and since when, if that can be told."""
        if found := _process_of(job, self.jobs):
            return True, found.began()
        return job.comment in self.comments, None


def _process_of(job: PlannedJob, processes: Iterable[Process]) -> Process | None:
    return next((one for one in processes if one.script == job.rule and one.was_told(job.log)), None)


def _note(directory: Path) -> str | None:
    """What is to be known where no run is seen at work."""
    if not can_be_found():
        return "this system has no /proc, so whether a run is at work cannot be seen"
    if others := running_snakemakes(directory):
        return f"{', '.join(map(str, others))} is here, but runs no jobs: it plans, or has just begun"
    return what_is_left(directory)


def _describe(jobs: Sequence[PlannedJob], at_work: _AtWork) -> Document:
    stages: dict[str, list[PlannedJob]] = {}
    for job in jobs:
        stages.setdefault(job.rule, []).append(job)
    undone = [job for job in jobs if not job.is_done]
    if all(job.rule in BETWEEN for job in undone):
        undone = []
    running = [
        {"rule": job.rule, "chunk": job.chunk, "since": _time(since), "log": str(job.log)}
        for job in undone
        for is_running, since in [at_work.since(job)]
        if is_running
    ]
    busy = {one["log"] for one in running}
    failures = [found for job in undone if str(job.log) not in busy and (found := _failure(job, at_work))]
    if not undone:
        made = (file.stat().st_mtime for job in jobs if job.rule not in BETWEEN for file in job.files)
        state, since = DONE, _time(max(made, default=None))
    else:
        state, since = (RUNNING if running else FAILED if failures else MISSING), _first(running or failures, "since")
    return {
        "state": state,
        "since": since,
        "stages": {
            rule: {"done": sum(job.is_done for job in members), "jobs": len(members)}
            for rule, members in stages.items()
        },
        "running": running,
        "failures": failures,
    }


def _failure(job: PlannedJob, at_work: _AtWork) -> Document | None:
    """How the last job at files that are not there ended; None where it did not fail, or there was none."""
    found = {"rule": job.rule, "chunk": job.chunk, "log": str(job.log)}
    if left := _process_of(job, at_work.left):
        reason = f"its Snakemake was killed, and process {left.number} goes on without it"
        return {**found, "reason": reason, "since": _time(left.began())}
    try:
        ended, word = job.log.stat().st_mtime, last_word(job.log)
        succeeded = job.benchmark.is_file() and job.benchmark.stat().st_mtime >= ended  # its files were removed since
    except OSError:
        return None
    if word is not None:
        if not word.is_failure:
            return None
        reason = word.reason
    elif succeeded or (at_work.began and ended >= at_work.began):
        return None  # or it is between two states, and the Snakemake at work will say how it ended
    else:
        reason = WITHOUT_A_WORD
    return {**found, "reason": reason, "since": _time(ended)}


def _first(found: Iterable[Document], key: str) -> Any:
    return min((one[key] for one in found if one[key] is not None), default=None)


def _time(seconds: float | None) -> str | None:
    """As ISO 8601 has it, to the second, in local time."""
    return None if seconds is None else datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
