"""How a job failed, in a line that names its log, and what a run that did not fail is missing."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from outlier_features.errors import INTERRUPTED_LINE, TERMINATED_LINE
from outlier_features.files.artifacts import read_json
from outlier_features.files.missing import missing_sentence

_LAST = 5  # lines in which a job's last word stands: a progress bar may be drawn once more after it


def failure_line(rule: str, logs: Sequence[str | Path], since: float) -> str:
    """What a job said last, and its log; of a job that gave no `error:` line, such as one that was killed, one here.

    A log that was last written before `since`, seconds from the epoch, is an earlier job's.
    """
    where = f"log: {', '.join(map(str, logs))}"
    for log in map(Path, logs):
        if log.is_file() and log.stat().st_mtime >= since:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
            for line in lines[: -_LAST - 1 : -1]:
                if line.startswith("error: "):
                    return f"rule {rule} failed: {line.removeprefix('error: ')}; {where}"
                if line in (INTERRUPTED_LINE, TERMINATED_LINE):
                    return f"error: rule {rule} was {line}; {where}"
            if "Traceback (most recent call last):" in lines[:-1]:
                return f"error: rule {rule} failed: {lines[-1]}; {where}"
        elif not _is_writable(log):
            return f"rule {rule} failed, and its log could not be written; {where}"
    return f"error: rule {rule} ended without a word: killed, or out of memory; {where}"


def missing_lines(summary: Path) -> Iterator[str]:
    """A line for each analysis of a run that could not be had, from its summary.json."""
    found = read_json(summary, "model", "corpus", "missing")
    for analysis, facts in found["missing"].items():
        if facts["cause"] != "off":
            yield f"{found['model']['name']} on {found['corpus']['name']}: {missing_sentence(analysis, facts)}"


def _is_writable(log: Path) -> bool:
    place = next(place for place in (log, *log.absolute().parents) if place.exists())
    return os.access(place, os.W_OK)
