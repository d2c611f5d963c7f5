"""The error classes for mistakes outside the code, and how a stage ends on one."""

import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outlier_features.machine_limits import refusal
from outlier_features.stage_log import StderrCopy, logging_stderr

INTERRUPTED, TERMINATED = 130, 143
INTERRUPTED_LINE, TERMINATED_LINE = "interrupted", "terminated"


class InputError(Exception):
    """A config, model, corpus or file is not what it must be.

    The message is one sentence: what was found, where (key or file), what was expected.
    """


class DamagedFile(InputError):
    """A file cannot be read, or is not the one that was expected in its place."""

    def __init__(self, path: str | Path, found: str):
        super().__init__(f"{path}: {found}")
        self.path = Path(path)


@contextmanager
def stage(log: str | Path) -> Iterator[None]:
    """Run the body of a rule's script: an `InputError`, or what the machine refuses, becomes one `error:` line.

    The exit status is then 1. What the body writes to stderr (progress, warnings), the line, and the traceback of any
    other error go to `log` too.
    SIGTERM and SIGINT end the body as an error would, so that nothing half-written is left.
    """
    log = Path(log)
    with logging_stderr(log) as stderr, _ended_by_sigterm(stderr):
        try:
            yield
        except KeyboardInterrupt:
            stderr.say(INTERRUPTED_LINE)
            sys.exit(INTERRUPTED)
        except Exception as error:
            sentence = _with_remedy(error, log) if isinstance(error, InputError) else refusal(error, _place(log))
            if sentence is None:
                traceback.print_exc()
            else:
                stderr.say(f"error: {' '.join(sentence.split())}")
            sys.exit(1)


def _place(log: Path) -> str:
    """The directory of results and the rule that a log is of."""
    results = _results(log)
    return f"{results}, rule {log.absolute().relative_to(results / 'logs').parts[0]}" if results else str(log)


def _results(log: Path) -> Path | None:
    return next((parent.parent for parent in log.absolute().parents if parent.name == "logs"), None)


def _with_remedy(error: InputError, log: Path) -> str:
    """The message; of a damaged file that a stage of this run wrote, with what to do.

    Such a file lies in the directory of results, where the log is in `logs/`; nobody is told to delete their own.
    """
    results = _results(log)
    if results and isinstance(error, DamagedFile) and error.path.absolute().is_relative_to(results):
        return f"{error}; delete it to have it made again"
    return str(error)


@contextmanager
def _ended_by_sigterm(stderr: StderrCopy) -> Iterator[None]:
    def end(number: int, frame: Any) -> None:
        stderr.say(TERMINATED_LINE)
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
