"""The command `outlier-features status`: which runs of a configuration are done, at work, failed or missing."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from outlier_features.command.configuration import add_configfile, resolved_config
from outlier_features.command.output import make_table, write_found
from outlier_features.status.run_status import DONE, status_of
from outlier_features.visible_text import visible
from outlier_features.wording import DASH

Part = Mapping[str, Any]
_ORDER = ("running", "failed", "missing", "done")


def add_status(status: argparse.ArgumentParser) -> None:
    status.description = (
        "Say of each run of a configuration whether it is done, running, failed or missing, and how far it has come. "
        "To be asked where Snakemake is or was started; nothing is written, and a run may be at work."
    )
    status.set_defaults(run=_status)
    add_configfile(status)
    status.add_argument("--json", action="store_true", help="as JSON")
    status.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to standard output")


def _status(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    found = status_of(resolved_config(options.configfile), Path.cwd())
    write_found(found, lambda: _parts(found), "json" if options.json else "table", options.output)


def _parts(found: Part) -> Iterator[Any]:
    if found["at_work"]:
        yield f"a run is at work, process {found['at_work']['process']}, since {_clock(found['at_work']['since'])}"
    else:
        yield found["note"] or "no run is at work"
    together = {"run": "comparison and report", **found["together"]}
    rows = [(visible(one["run"]), one["state"], _clock(one["since"]), _progress(one)) for one in found["runs"]]
    rows.append((together["run"], together["state"], _clock(together["since"]), _progress(together)))
    states = [one["state"] for one in found["runs"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in _ORDER if state in states)
    yield make_table(f"Runs: {counts}", ("Run", "State", "Since", "Jobs"), rows)
    for one in [*found["runs"], together]:
        for failure in _distinct(one["failures"]):
            yield visible(f"{one['run']}: rule {failure['rule']}: {failure['reason']}; log: {failure['log']}")


def _progress(one: Part) -> str:
    """How many jobs are done and, of a run that is not, what is at work and where it stands."""
    stages = one["stages"]
    done, jobs = (sum(stage[key] for stage in stages.values()) for key in ("done", "jobs"))
    text = f"{done} of {jobs}"
    if one["state"] == DONE:
        return text
    current = [f"{rule} since {_clock(since)}" for rule, since in _at_work(one["running"]).items()]
    begun = [
        f"{rule} {stage['done']} of {stage['jobs']}"
        for rule, stage in stages.items()
        if 0 < stage["done"] < stage["jobs"]
    ]
    return "; ".join([text, *begun, *current])


def _at_work(running: list[Part]) -> dict[str, str | None]:
    """By rule since when its first job is at work."""
    found: dict[str, str | None] = {}
    for one in running:
        found.setdefault(one["rule"], one["since"])
    return found


def _distinct(failures: list[Part]) -> list[Part]:
    """One of those of a rule that have the same reason."""
    return [*{(one["rule"], one["reason"]): one for one in reversed(failures)}.values()][::-1]


def _clock(time: str | None) -> str:
    return DASH if time is None else time[:19].replace("T", " ")
