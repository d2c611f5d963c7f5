"""What a killed run leaves in its working directory, and what must be known before another may go on there.

Snakemake keeps its lock in `.snakemake/locks` until it ends by itself. Beside it each run notes who it is, since
processes of another host, such as another login node of a cluster, cannot be seen.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from outlier_features.errors import InputError
from outlier_features.files.artifacts import HOST, unfinished
from outlier_features.run.orphans import Process, can_be_found, end, orphaned_jobs, running_snakemakes

_LOCKS = Path(".snakemake/locks")
_OWNER = ".owner"
GO_ON = "`make resume` goes on (without make: `outlier-features recover --help`)"


def begin_run(directory: Path, results: Path, resources: Path) -> None:
    """What a run does first, once it holds the lock: note who holds it, and remove what killed jobs left.

    Raises `InputError` where a job of an earlier run in `directory` still writes, or `results` cannot be written;
    `resources` need not be, where all is fetched.
    """
    if orphans := orphaned_jobs(directory):
        raise InputError(f"{_listed(orphans)} of a killed run still at work in {directory}: {GO_ON}")
    _require_writable(results)
    if (directory / _LOCKS).is_dir():
        (directory / _LOCKS / f"{HOST}-{os.getpid()}{_OWNER}").touch()
    remove_unfinished([results, resources])


def require_working_directory(directory: Path) -> None:
    """Raise `InputError` where Snakemake could not keep its records in `directory`."""
    for place in (directory / ".snakemake", *(directory / ".snakemake").glob("*/")):
        nearest = place if place.exists() else directory
        if not os.access(nearest, os.W_OK):
            raise InputError(f"{nearest}: found no permission to write, expected it where Snakemake is started")


def _require_writable(place: Path) -> None:
    nearest = next(one for one in (place, *place.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        found = f"{place}: found {nearest}, where nothing can be written ({error.strerror})"
        raise InputError(f"{found}, expected a directory for results") from error


def remove_unfinished(places: Sequence[Path]) -> None:
    """Remove the temporary files of processes that are gone; name on stderr those of other hosts, which may run."""
    for place in places:
        for left in unfinished(place.rglob(".*.tmp")):
            if left.is_abandoned:
                print(f"removed {left.path}, {left.size:,} bytes that a killed job left", file=sys.stderr)
                left.remove()
            elif left.host != HOST:
                print(
                    f"{left.path}, {left.size:,} bytes, is being written by process {left.process} on {left.host}, "
                    "or was left by it; delete it if no job runs there",
                    file=sys.stderr,
                )


def recover(directory: Path) -> None:
    """End the jobs of a killed run in `directory`, so that its lock can be removed and another run can go on.

    Raises `InputError` where a run is at work there, or may be.
    """
    _require_no_run(directory)
    if not can_be_found():
        print("this system has no /proc to look for jobs of a killed run in; make sure none runs", file=sys.stderr)
    orphans = orphaned_jobs(directory)
    if left := end(orphans):
        raise InputError(f"{_listed(left)} could not be ended, expected to end what a killed run left in {directory}")
    for job in orphans:
        print(f"ended {job}, which a killed run had left", file=sys.stderr)


def lock_holder(directory: Path) -> Process | None:
    """The Snakemake at work in `directory`, which holds its lock; None where there is none on this host."""
    numbers = [int(number) for host, number, _ in _owners(directory) if host == HOST]
    holders = [one for one in running_snakemakes(directory) if one.number in numbers]
    return min(holders, key=lambda one: one.began() or 0.0, default=None)  # a second pass began later


def what_is_left(directory: Path) -> str | None:
    """What a killed run has left in `directory`, where no run is at work; None where nothing, or it cannot be seen."""
    try:
        require_nothing_left(directory)
    except InputError as error:
        return str(error)
    return None


def require_nothing_left(directory: Path) -> None:
    """Raise `InputError` where a run in `directory` is at work, or was killed and left its lock or jobs."""
    _require_no_run(directory)
    found = ["its lock"] if (directory / _LOCKS).is_dir() and any((directory / _LOCKS).iterdir()) else []
    found += [str(job) for job in orphaned_jobs(directory)]
    if found:
        raise InputError(f"{directory}: a killed run has left {' and '.join(found)}: {GO_ON}")


def _require_no_run(directory: Path) -> None:
    if running := running_snakemakes(directory):
        raise InputError(f"{directory}: a run is at work here, {_listed(running)}: wait for it, or end it")
    for host, number, owner in _owners(directory):
        if host != HOST:
            raise InputError(
                f"{directory}: a run that began as process {number} on {host} holds the lock, and {HOST} cannot see "
                f"whether it is at work: try there, or delete {owner} if it has ended"
            )
    if jobs := _cluster_jobs(directory):
        numbers = " ".join(jobs)
        raise InputError(
            f"{directory}: SLURM has jobs of a run here: wait for them, or end them with `scancel {numbers}`"
        )


def _owners(directory: Path) -> Iterator[tuple[str, str, Path]]:
    """Of each note who holds the lock the host, the process and the file."""
    for owner in sorted((directory / _LOCKS).glob(f"*{_OWNER}")):
        host, _, number = owner.stem.rpartition("-")
        yield host, number, owner


def _cluster_jobs(directory: Path) -> list[str]:
    """Numbers of the SLURM jobs that were submitted from `directory` and have not ended."""
    return _queued("%i", directory)


def running_on_cluster(directory: Path) -> list[str]:
    """What Snakemake says of each SLURM job that was submitted from `directory` and is at work."""
    return _queued("%k", directory, "--states=running")


def _queued(field: str, directory: Path, *options: str) -> list[str]:
    """A field of the SLURM jobs that were submitted from `directory`, none where there is no SLURM."""
    if not shutil.which("squeue"):
        return []
    command = ["squeue", "--noheader", f"--format={field} %Z", *options]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"squeue failed, so make sure that SLURM has no jobs of this run: {error}", file=sys.stderr)
        return []
    lines = [line.partition(" ") for line in asked.stdout.splitlines()]
    return [found for found, _, place in lines if place == str(directory.resolve())]


def _listed(processes: Sequence[object]) -> str:
    return ", ".join(map(str, processes))
