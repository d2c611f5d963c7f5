"""How a job failed, in a line that names its log."""

from collections.abc import Sequence
from pathlib import Path


def failure_line(rule: str, logs: Sequence[str | Path]) -> str:
    """`error:`, what the job said last, and its log; a job that was killed says nothing."""
    where = f"rule {rule}, log {', '.join(map(str, logs))}"
    for log in map(Path, logs):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        last = lines[-1] if lines else ""
        if last.startswith("error: "):
            return f"{last} ({where})"
        if "Traceback (most recent call last):" in lines:
            return f"error: {last} ({where})"
    return f"error: the job was killed, perhaps for want of memory ({where})"
