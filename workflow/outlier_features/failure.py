"""How a job failed, in a line that names its log."""

from collections.abc import Sequence
from pathlib import Path

from outlier_features.errors import INTERRUPTED_LINE, TERMINATED_LINE


def failure_line(rule: str, logs: Sequence[str | Path], since: float) -> str:
    """`error:`, what the job said last, and its log; a job that was killed says nothing.

    A log that was last written before `since`, seconds from the epoch, is an earlier job's.
    """
    where = f"(rule {rule}, log {', '.join(map(str, logs))})"
    for log in map(Path, logs):
        if log.is_file() and log.stat().st_mtime >= since:
            *before, last = log.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
            if last.startswith("error: "):
                return f"{last} {where}"
            if last in (INTERRUPTED_LINE, TERMINATED_LINE):
                return f"error: the job was {last} {where}"
            if "Traceback (most recent call last):" in before:
                return f"error: {last} {where}"
    return f"error: the job ended without a word: killed, or out of memory {where}"
