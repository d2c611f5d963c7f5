"""What a run of Snakemake tells the process that started it, line by line as JSON: its jobs, and which begin and end.

Snakemake's logger plugin writes, `outlier-features run` reads.
"""

import json
import os
from collections.abc import Iterator, Mapping
from logging import LogRecord
from typing import Any

_VARIABLE = "OUTLIER_FEATURES_EVENTS"
# By the events of Snakemake's logger, the attributes of their records that are told.
_TOLD = {
    "run_info": ("stats",),
    "job_info": ("jobid", "rule_name", "rule_msg"),
    "job_finished": ("job_id",),
    "job_error": ("jobid", "rule_name"),
}
Event = Mapping[str, Any]


def told_to(descriptor: int) -> dict[str, str]:
    """What a child of this process needs in its environment to write events to a pipe that it inherits."""
    return {_VARIABLE: f"{os.getpid()}:{descriptor}"}


def tell(record: LogRecord) -> None:
    """Write a record of Snakemake's logger, if this process was started to do so; jobs that inherit it were not."""
    kind = str(getattr(getattr(record, "event", None), "value", ""))
    parent, _, descriptor = os.environ.get(_VARIABLE, "").partition(":")
    if kind in _TOLD and parent == str(os.getppid()):
        told = {name: getattr(record, name, None) for name in _TOLD[kind]}
        try:
            os.write(int(descriptor), json.dumps({"event": kind, **told}).encode() + b"\n")
        except OSError:
            del os.environ[_VARIABLE]  # nobody listens any longer


def events_in(text: bytes) -> Iterator[Event]:
    """Of whole lines."""
    return map(json.loads, text.splitlines())
