"""What Snakemake takes to plan runs of ours, against a workflow with the same rules, jobs and files alone.

CPU seconds of a dry run at 100, 1,000 and 10,000 jobs, and of a run on 100 jobs that finds nothing to do. The plain
workflow is made from the plan itself: each rule has its patterns as inputs and outputs, and no parameters, resources,
logs, benchmarks, messages or functions; an input that no pattern gives (all chunks of a run) is looked up.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from outlier_features.files.tensorfile import write_tensors

ROOT = Path(__file__).parents[1]
SIZES = {100: (1, 41), 1000: (2, 242), 10_000: (12, 408)}  # jobs: models, chunks of each
NOTHING_TO_DO = 100
PLAIN = """\
import json
from pathlib import Path
LISTED = json.loads(Path("listed.json").read_text())
rule all:
    input: {targets}
"""


def configure(folder: Path, models: int, chunks: int) -> None:
    """Runs of `models` models of our own, which need not be there to be planned, in chunks of one sequence."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "text.txt").touch()
    names = [f"model-{number:02}" for number in range(models)]
    config = {
        "models": names,
        "corpora": ["corpus-0"],
        "sample": {"sequences": chunks, "tokens": 64},
        "extract": {"chunk_sequences": 1},
        "catalog": {
            "models": {name: {"path": "model"} for name in names},
            "corpora": {"corpus-0": {"files": ["text.txt"]}},
        },
    }
    (folder / "runs.yaml").write_text(yaml.safe_dump(config))


def command(folder: Path, *options: str) -> list[str]:
    ours = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", "runs.yaml"]
    return [
        sys.executable,
        "-m",
        "snakemake",
        "--cores",
        "1",
        *(ours if (folder / "runs.yaml").exists() else []),
        *options,
    ]


def cpu_seconds(folder: Path, *options: str) -> float:
    """User and system time of a run of Snakemake in `folder`, of its children too."""
    with (folder / "printed").open("w") as printed:
        run = subprocess.Popen(command(folder, *options), cwd=folder, stdout=printed, stderr=printed)
        _, status, usage = os.wait4(run.pid, 0)
    if status:
        sys.exit((folder / "printed").read_text()[-3000:])
    return usage.ru_utime + usage.ru_stime


def planned(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of our rules the output patterns and constraints of wildcards; of each planned job rule, wildcards and files."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

    with contextlib.chdir(folder), SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=[Path("runs.yaml")]),
            snakefile=ROOT / "Snakefile",
            workdir=folder,
        )
        workflow.dag(DAGSettings()).execute_workflow(executor="dryrun")
        dag = workflow._workflow.dag
        rules = {
            rule.name: {
                "output": [str(path) for path in rule.output],
                "constraints": rule.wildcard_constraints,
            }
            for rule in workflow._workflow.rules
        }
        jobs = [
            {
                "rule": job.rule.name,
                "wildcards": dict(job.wildcards_dict),
                "input": list(map(str, job.input)),
                "output": list(map(str, job.output)),
            }
            for level in dag.toposorted()
            for job in level
        ]
    return rules, jobs


def write_plain(folder: Path, rules: Mapping[str, Any], jobs: list[dict[str, Any]]) -> None:
    """A workflow in `folder` that has these rules and plans these jobs."""
    listed: dict[str, list[str]] = {}
    text = [PLAIN.format(targets=next(job["input"] for job in jobs if job["rule"] == "all"))]
    for rule in sorted({job["rule"] for job in jobs} - {"all"}):
        mine = [job for job in jobs if job["rule"] == rule]
        inputs = patterns(mine)
        if inputs is None:
            listed |= {job["output"][0]: job["input"] for job in mine}
            inputs = f"lambda wildcards: LISTED[{rules[rule]['output'][0]!r}.format(**wildcards)]"
        constraints = ", ".join(f"{name}={found!r}" for name, found in rules[rule]["constraints"].items())
        text += [f"rule {rule}:", f"    input: {inputs}", f"    output: {rules[rule]['output']}"]
        text += [f"    wildcard_constraints: {constraints}"] if constraints else []
        text += ["    shell: 'touch {output}'"]
    (folder / "Snakefile").write_text("\n".join(text) + "\n")
    (folder / "listed.json").write_text(json.dumps(listed))


def patterns(jobs: list[dict[str, Any]]) -> list[str] | None:
    """Patterns from which the inputs of a rule's jobs come; None if there are none."""
    names = {value: f"{{{name}}}" for name, value in jobs[-1]["wildcards"].items()}
    values = "|".join(map(re.escape, names)) or "$^"
    found = [re.sub(values, lambda match: names[match[0]], path) for path in jobs[-1]["input"]]
    made = all([path.format(**job["wildcards"]) for path in found] == job["input"] for job in jobs)
    return found if made else None


def make(folder: Path, jobs: list[dict[str, Any]]) -> None:
    """All files of a run, so that Snakemake finds nothing to do; empty but for those that are read to plan."""
    recorded = {"counted": {"at": {"pairs": {}, "listed": {}}, "dense": []}, "scaled_at": {}}
    values = {f"{site}.sums.{layer}": np.zeros((4, 64)) for site in ("attn_norm", "resid_post") for layer in range(24)}
    for path in (folder / path for job in jobs for path in job["output"]):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.name == "statistics":
            write_tensors(path, values, recorded)
        elif path.name == "source.json":
            path.write_text(json.dumps({"files": {"model.safetensors": {"bytes": 10**9}}}))
        else:
            path.touch()
    cpu_seconds(folder, "--touch")


def compare(jobs: int, nothing_to_do: bool, repetitions: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        ours, plain = Path(name) / "ours", Path(name) / "plain"
        ours.mkdir(), plain.mkdir()
        configure(ours, *SIZES[jobs])
        rules, plan = planned_apart(ours)
        write_plain(plain, rules, plan)
        for file in ("text.txt", "model"):
            (plain / file).symlink_to(ours / file)
        if nothing_to_do:
            make(ours, plan)
            make(plain, plan)
        options = [] if nothing_to_do else ["--dry-run"]
        what = "nothing to do" if nothing_to_do else "dry run"
        best = {ours: float("inf"), plain: float("inf")}
        for _ in range(repetitions):
            for folder in best:
                best[folder] = min(best[folder], cpu_seconds(folder, *options))
                require(folder, len(plan), nothing_to_do)
        print(
            f"{what:13}  {len(plan):6,} jobs   ours {best[ours]:6.2f} s   plain {best[plain]:6.2f} s   "
            f"ratio {best[ours] / best[plain]:.2f}",
            flush=True,
        )


def require(folder: Path, jobs: int, nothing_to_do: bool) -> None:
    """End where Snakemake did not plan what it was to plan."""
    printed = (folder / "printed").read_text()
    found = "Nothing to be done" if nothing_to_do else rf"total\s+{jobs}\s"
    if not re.search(found, printed):
        sys.exit(f"{folder.name}: expected {found!r}\n{printed[-3000:]}")


def planned_apart(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`planned`, in a process of its own: Snakemake sets up logging for all of it."""
    done = subprocess.run(
        [sys.executable, __file__, "--plan", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    rules, jobs = json.loads(done.stdout)
    return rules, jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3, help="the least of as many is taken")
    parser.add_argument("--jobs", type=int, nargs="*", choices=SIZES, default=[*SIZES])
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plan:
        answer = os.fdopen(os.dup(1), "w")  # what the workflow prints goes elsewhere
        os.dup2(2, 1)
        json.dump(planned(arguments.plan), answer)
        answer.close()
        return
    compare(NOTHING_TO_DO, True, arguments.repetitions)
    for jobs in arguments.jobs:
        compare(jobs, False, arguments.repetitions)


if __name__ == "__main__":
    main()
