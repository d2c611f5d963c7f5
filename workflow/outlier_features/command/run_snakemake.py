"""Snakemake as a child of this process: with all that it says, or with one line of progress."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from outlier_features.errors import TERMINATED
from outlier_features.run.events import events_in, told_to
from outlier_features.stage_log import ERROR
from outlier_features.status.time_left import RunProgress
from outlier_features.visible_text import visible

_FAILED_JOB = re.compile(rf"(?:{ERROR})?(rule \w+ .*; log: .*)")
_REFUSAL = re.compile(r"(?:Error|\S+: error): (.*)")  # by Snakemake itself, such as of an option of a profile
_LOOK = 1.0  # seconds between two looks at the clock


@dataclass(frozen=True)
class Ended:
    """How a run ended: its status, one line for each job that failed, and where the rest that was said is."""

    status: int
    errors: Sequence[str] = ()
    log: Path | None = None


def run_verbosely(command: Sequence[str], environment: Mapping[str, str]) -> Ended:
    with _child(command, env=environment) as child:
        return Ended(child.wait())


def run_quietly(
    command: Sequence[str], environment: Mapping[str, str], log: Path, expected: Mapping[str, float]
) -> Ended:
    """What is said goes to `log`; `expected`: seconds of a job by rule, as far as they are known."""
    log.parent.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    environment = {**environment, **told_to(writing)}
    with log.open("w", encoding="utf-8") as said, os.fdopen(reading, "rb", buffering=0) as events:
        keys = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said, "pass_fds": (writing,), "env": environment}
        try:
            with _child(command, **keys) as child:
                os.close(writing)
                writing = -1
                _show(events, child, RunProgress(expected))
                status = child.wait()
        finally:
            if writing >= 0:
                os.close(writing)
    return Ended(status, [*_errors(log)] if status else (), log)


@contextmanager
def _child(command: Sequence[str], **keys: Any) -> "Iterator[subprocess.Popen[bytes]]":
    """A process with a group of its own, which is interrupted where the body is, and waited for."""

    def end(number: int, frame: Any) -> None:
        sys.exit(TERMINATED)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    child = subprocess.Popen(command, start_new_session=True, **keys)
    try:
        yield child
    finally:
        if child.poll() is None:
            print("ending the jobs; the same command goes on where they stood", file=sys.stderr)
            os.killpg(child.pid, signal.SIGINT)
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(events: IO[bytes], child: "subprocess.Popen[bytes]", found: RunProgress) -> None:
    """One line that says how far the run is, until it ends."""
    columns = (BarColumn(bar_width=24), TextColumn("{task.fields[text]}", markup=False), TimeElapsedColumn())
    console, rest = Console(file=sys.stderr), b""
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=1.0, text="planning")
        while child.poll() is None:
            if select.select([events], [], [], _LOOK)[0]:
                if not (read := os.read(events.fileno(), 1 << 16)):
                    return
                lines, _, rest = (rest + read).rpartition(b"\n")
                for event in events_in(lines):
                    found.take(event, time.monotonic())
            progress.update(task, completed=found.share, text=_text(found, console.width - 36), refresh=True)


def _text(found: RunProgress, width: int) -> str:
    if not found.jobs:
        return "planning"
    left = found.seconds_left(time.monotonic())
    text = f"{found.finished} of {found.jobs} jobs, {'time left not known yet' if left is None else _left(left)}"
    return f"{text}: {visible(found.message)}"[: max(width, len(text))]


def _left(seconds: float) -> str:
    if seconds < 60:
        return "less than a minute left"
    minutes = round(seconds / 60)
    return f"about {minutes} min left" if minutes < 120 else f"about {minutes / 60:.1f} h left"


def _errors(log: Path) -> Iterator[str]:
    """Of each job that failed what is said of it; else what Snakemake or the configuration says, each once."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace"))]
    jobs = [match[1] for line in lines if (match := _FAILED_JOB.fullmatch(line))]
    own = jobs or [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    refusals = [f"Snakemake: {match[1]}; log: {log}" for line in lines if (match := _REFUSAL.fullmatch(line))]
    yield from dict.fromkeys(own or refusals)
