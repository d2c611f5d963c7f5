"""Rules run in a process of their own, as Snakemake does: the hub library reads its settings when it is imported."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_RUN = """
import json, os, pathlib, runpy, sys, time, types
script, log, sources = json.loads(sys.argv[1])
if waits := os.environ.pop("TEST_WAITS", None):
    from outlier_features.fetch import hub
    hub._WAITS = json.loads(waits)
for source, output in sources:
    snakemake = types.SimpleNamespace(
        params=types.SimpleNamespace(source=source), output=types.SimpleNamespace(source=output), log=[log],
        config={"fetch": {"evict": "TEST_EVICT" in os.environ}},
    )
    start, status = time.monotonic(), 0
    try:
        runpy.run_path(script, init_globals={"snakemake": snakemake})
    except SystemExit as error:
        status = error.code
    print(json.dumps([status, pathlib.Path(log).read_text(), time.monotonic() - start]), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """How a rule ended: its one `error:` line, or nothing, and the seconds it took."""

    error: str
    seconds: float


def start_rule(
    rule: str, sources: dict[Path, dict[str, Any]], endpoint: str, home: Path, **environment: str
) -> "subprocess.Popen[str]":
    """Start the script of `rule`, once for each output directory and its catalog entry, in `home`."""
    home.mkdir(parents=True, exist_ok=True)
    outputs = [(source, str(directory / "source.json")) for directory, source in sources.items()]
    arguments = json.dumps([str(ROOT / "scripts" / f"{rule}.py"), str(home / "log.txt"), outputs])
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, arguments],
        env={**inherited, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
    )


def finish(process: "subprocess.Popen[str]") -> list[Outcome]:
    """Wait for the process; an error must be one line, in the log as on stderr, with exit status 1."""
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    results = [json.loads(line) for line in stdout.splitlines()]
    errors = [[line for line in log.splitlines() if line.startswith("error: ")] for _, log, _ in results]
    assert [status for status, _, _ in results] == [len(lines) for lines in errors], stdout
    assert list(itertools.chain(*errors)) == [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert all(log.splitlines()[-1:] == lines for (_, log, _), lines in zip(results, errors, strict=True) if lines)
    return [Outcome("".join(lines), seconds) for lines, (_, _, seconds) in zip(errors, results, strict=True)]


def run_rules(
    rule: str, sources: dict[Path, dict[str, Any]], endpoint: str, home: Path, **environment: str
) -> list[Outcome]:
    return finish(start_rule(rule, sources, endpoint, home, **environment))


def run_rule(rule: str, source: dict[str, Any], directory: Path, endpoint: str, home: Path, **environment: str) -> str:
    """Run one; returns its error."""
    return run_rules(rule, {directory: source}, endpoint, home, **environment)[0].error
