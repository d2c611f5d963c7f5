"""Processes of a run in a directory: a Snakemake that is killed leaves its jobs, and they go on writing.

They are known by their working directory and command line, as Linux shows them in /proc; elsewhere, and in another
container or host, none is found.
"""

import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

_PROC = Path("/proc")
_SCRIPTS = ".snakemake/scripts"


@dataclass(frozen=True)
class Process:
    number: int
    parent: int
    directory: Path
    arguments: tuple[str, ...]

    @property
    def is_snakemake(self) -> bool:
        """As a program, as a script that an interpreter runs, or as a module."""
        called = [Path(argument).name for argument in self.arguments[:6]]
        return "snakemake" in called[:2] or ("-m", "snakemake") in pairwise(called)

    @property
    def script(self) -> str | None:
        """The rule of the script that Snakemake had this process run."""
        path = self.directory / "".join(self.arguments[1:2])
        return path.name.split(".")[1] if path.parent == self.directory / _SCRIPTS else None  # after a random name

    def __str__(self) -> str:
        name = self.script or ("snakemake" if self.is_snakemake else Path(self.arguments[0]).name)
        return f"{name} (process {self.number})"

    def was_told(self, path: Path) -> bool:
        """Whether Snakemake's script for a job names a path, such as that of its log, as one of its own does."""
        try:
            script = (self.directory / self.arguments[1]).read_bytes()
        except (OSError, IndexError):
            return False
        return repr(os.fsencode(path))[2:-1].encode() in script  # Snakemake writes bytes there as Python does

    def began(self) -> float | None:
        """Seconds from the epoch; None where it is gone."""
        try:
            status = (_PROC / str(self.number) / "stat").read_text(errors="replace")
            lines = (_PROC / "stat").read_text().splitlines()
        except OSError:
            return None
        booted = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
        return booted + int(status.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def can_be_found() -> bool:
    return (_PROC / "self/cwd").exists()


def running_snakemakes(directory: Path) -> list[Process]:
    """Snakemakes at work in `directory`, this process and those above it left out."""
    table = _processes()
    own = {os.getpid(), *_ancestors(os.getpid(), table)}
    return [one for one in _in(directory, table) if one.is_snakemake and one.number not in own]


def orphaned_jobs(directory: Path) -> list[Process]:
    """Jobs of a run in `directory` whose Snakemake is gone."""
    return [job for job, snakemakes in _jobs(directory) if not snakemakes]


def jobs_of(snakemake: Process) -> list[Process]:
    """Jobs that a Snakemake runs in its directory, with those of its second pass."""
    return [job for job, snakemakes in _jobs(snakemake.directory) if snakemake.number in snakemakes]


def _jobs(directory: Path) -> list[tuple[Process, set[int]]]:
    """Jobs in a directory, each with the Snakemakes above it."""
    table = _processes()
    return [
        (one, {number for number in _ancestors(one.number, table) if table[number].is_snakemake})
        for one in _in(directory, table)
        if one.script
    ]


def end(processes: Sequence[Process], patience: float = 10.0) -> list[Process]:
    """End processes and those that they started: SIGTERM, and SIGKILL after `patience` seconds.

    Returns those that are there still. Signals go through file descriptors, so no other process that was given a number
    anew can be hit.
    """
    table = _processes()
    wanted = {one.number for one in processes}
    family = [one for one in table.values() if one.number in wanted or wanted & set(_ancestors(one.number, table))]
    living = {descriptor: one for one in family if (descriptor := _descriptor(one)) is not None}
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for descriptor in living:
                signal.pidfd_send_signal(descriptor, number)
            _wait(living, patience)
        return list(living.values())
    finally:
        for descriptor in living:
            os.close(descriptor)


def _descriptor(process: Process) -> int | None:
    """A descriptor of `process`; None if it is gone, or its number is another's by now."""
    try:
        descriptor = os.pidfd_open(process.number)
    except ProcessLookupError:
        return None
    if _read(process.number) == process:
        return descriptor
    os.close(descriptor)
    return None


def _wait(living: dict[int, Process], seconds: float) -> None:
    """Wait for processes to end, and take those that did out of `living`."""
    poll, deadline = select.poll(), time.monotonic() + seconds
    for descriptor in living:
        poll.register(descriptor, select.POLLIN)
    while living and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            os.close(descriptor)
            del living[descriptor]


def processes_in(directory: Path) -> list[Process]:
    """All processes whose working directory is `directory`."""
    return _in(directory, _processes())


def _in(directory: Path, table: dict[int, Process]) -> list[Process]:
    return [one for one in table.values() if one.directory == directory.resolve()]


def _processes() -> dict[int, Process]:
    if not can_be_found():
        return {}
    found = (_read(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdecimal())
    return {one.number: one for one in found if one}


def _read(number: int) -> Process | None:
    """What /proc says of a process; None if it is gone, or another user's."""
    place = _PROC / str(number)
    try:
        directory = Path(os.readlink(place / "cwd"))
        arguments = (place / "cmdline").read_bytes().split(b"\0")[:-1]
        status = (place / "stat").read_text(errors="replace")
    except OSError:
        return None
    parent = int(status.rpartition(")")[2].split()[1])
    return Process(number, parent, directory, tuple(os.fsdecode(argument) for argument in arguments))


def _ancestors(number: int, table: dict[int, Process]) -> Iterator[int]:
    while number in table:
        number = table[number].parent
        if number in table:
            yield number
