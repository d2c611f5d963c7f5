"""The error classes for mistakes outside the code, how a stage ends on one, and what is said of other errors."""

import platform
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from outlier_features import __version__
from outlier_features.failed_chunk import failed_chunk
from outlier_features.former_outputs import take_outputs
from outlier_features.machine_limits import refusal
from outlier_features.stage_log import ERROR, INTERRUPTED_LINE, NOT_RUN, TERMINATED_LINE, StderrCopy, logging_stderr

INTERRUPTED, TERMINATED = 130, 143
_PACKAGES = ("torch", "transformers", "snakemake", "numpy", "polars")  # whose versions a report of a fault names
_MOST_TEXT = 300  # characters of an error that nobody foresaw


class InputError(Exception):
    """A config, model, corpus or file is not what it must be.

    The message is one sentence: what was `found`, where (key or file), what was expected; and at its end a `hint`, what
    the user can change, if there is one.
    """

    def __init__(self, found: str, hint: str = ""):
        super().__init__(f"{found}; {hint}" if hint else found)
        self.found = found


class ConfigError(InputError):
    """A key of the configuration asks for what cannot be: a mistake, whichever analysis comes upon it."""


class DamagedFile(InputError):
    """A file cannot be read, or is not the one that was expected in its place."""

    def __init__(self, path: str | Path, found: str):
        super().__init__(f"{path}: {found}")
        self.path = Path(path)
        self.found = found


@contextmanager
def stage(log: str | Path) -> Iterator[None]:
    """Run the body of a rule's script: an `InputError`, or what the machine refuses, becomes one `error:` line.

    The exit status is then 1. Any other error is a fault of this program, whose line says so under the traceback. What
    the body writes to stderr (progress, warnings), the line and the traceback go to `log` too.
    Where another chunk of the same run failed before, the body is not run, and neither where it would make what it made
    from the same inputs before.
    SIGTERM and SIGINT end the body as an error would, so that nothing half-written is left.
    """
    log = Path(log)
    with logging_stderr(log) as stderr, _ended_by_sigterm(stderr):
        if other := failed_chunk(log):
            stderr.say(f"{NOT_RUN}another chunk failed, see {other}")
            sys.exit(1)
        if take_outputs(results_of(log), log):
            stderr.say("nothing to make: its inputs are as they were, and so are its outputs")
            sys.exit(0)
        try:
            yield
        except KeyboardInterrupt:
            stderr.say(INTERRUPTED_LINE)
            sys.exit(INTERRUPTED)
        except Exception as error:
            sentence = _with_remedy(error, log) if isinstance(error, InputError) else refusal(error, place_of(log))
            if sentence is None:
                traceback.print_exc()
                sentence = fault_sentence(error_in_short(error), f"{log}, the configuration")
            stderr.say(f"{ERROR}{' '.join(sentence.split())}")
            sys.exit(1)


def fault_sentence(found: str, evidence: str) -> str:
    """What to say of an error that nobody foresaw: it is not the user's.

    found      the error, as `error_in_short` says it
    evidence   what is to be sent with it
    """
    return (
        f"{found}; this is a fault of outlier-features, not of your configuration, model or text: "
        f"please report it with {evidence} and these versions: {', '.join(_versions())}"
    )


def error_in_short(error: BaseException) -> str:
    """The kind of an error, what it says, and the line that it comes from."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"


def _versions() -> Iterator[str]:
    yield f"outlier-features {__version__}"
    for package in _PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    yield f"Python {platform.python_version()}"
    yield platform.platform()


def place_of(log: Path) -> str:
    """The directory of results and the rule that a log is of."""
    results = results_of(log)
    return f"{results}, rule {log.absolute().relative_to(results / 'logs').parts[0]}" if results else str(log)


def results_of(log: Path) -> Path | None:
    """The directory of results that a log is in."""
    return next((parent.parent for parent in log.absolute().parents if parent.name == "logs"), None)


def _with_remedy(error: InputError, log: Path) -> str:
    """The message; of a damaged file that a stage of this run wrote, with what to do.

    Such a file lies in the directory of results, where the log is in `logs/`; nobody is told to delete their own.
    """
    results = results_of(log)
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
