import json
import os
import time

from outlier_features.failed_chunk import SINCE
from outlier_features.run.failure import (
    Failure,
    failure_lines,
    has_spoken,
    missing_lines,
)
from outlier_features.run.second_pass import run_second_pass

START = time.time()
# Rules of which a job is of all runs together.
JOINT = (
    "compare_runs",
    "compare_models",
    "compare_revisions",
    "draw_comparison",
    "export_tables",
    "list_galleries",
    "render_report",
    "summarize_costs",
)


def tell_jobs_when_it_began():
    """What `failed_chunk` asks for. Where a job is tried again, with more memory, a first failure is not the last."""
    if not workflow.execution_settings.retries:
        os.environ[SINCE] = str(START)


def outcome():
    """Where the end product is."""
    store = (workflow.storage_settings.default_storage_prefix or "").rstrip("/")
    place = f"{store}/{RESULTS}" if STORED else RESULTS
    made = {job.rule.name for job in workflow.dag.jobs}
    if "render_report" in made:
        return f"The report is {place}/report.html"
    if "list_galleries" in made:
        return f"The gallery is {place}/gallery/index.html"
    if "draw_figures" in made:
        return f"The figures are in {place}/<model>/<corpus>/figures"
    return f"The tables are in {place}"


def print_missing():
    """What runs that were summarized are missing."""
    for job in workflow.dag.jobs:
        if job.rule.name == "summarize_run" and Path(job.output.summary).is_file():
            for line in missing_lines(Path(job.output.summary)):
                print(line, file=sys.stderr)


def run_of(job):
    """The run that a job is of, `model/corpus`; None of a job of several."""
    wildcards = job.wildcards
    if "run" in wildcards.keys():
        return None if wildcards.run == "comparison" else wildcards.run
    if job.rule.name == "fetch_model" or "model" not in wildcards.keys():
        return None
    return f"{wildcards.model}/{wildcards.get('corpus', DUMP)}"


def end_with_failures():
    """Say why jobs failed, after what is of all runs was made of those that did not."""
    dag = workflow.dag
    failed, failures = set(), {}
    for one in getattr(workflow.scheduler, "failed", ()):
        members = [*one] if one.is_group() else [one]
        failed.update(members)
        # Of a group, jobs that said nothing may have ended well, or not have begun.
        spoke = [job for job in members if has_spoken(Path(job.log[0]), START)]
        for job in spoke or members:
            of = run_of(job) or job.rule.name
            failures[job] = Failure.of_job(job.rule.name, of, job.log, START)
    ordered = sorted(failures.values(), key=lambda one: (one.of, one.log))
    lines = [*failure_lines(ordered)]
    unfinished = set(dag.needrun_jobs()) - failed
    # What could have been run and was not: somebody ended it all.
    was_ended = unfinished - set(dag.bfs(dag.depending, *failed)) or any(
        one.word.was_stopped for one in ordered
    )
    if not was_ended:
        lines += make_of_others(unfinished | failed, failures)
    for line in lines:
        print(line, file=sys.stderr)


def make_of_others(unfinished, failures):
    """Make what is of all runs of those that are done, where one is; returns lines that say so."""
    dag = workflow.dag
    joint = {
        job for job in unfinished if job.rule.name in JOINT and run_of(job) is None
    }
    if not joint or joint & failures.keys():
        return []
    causes = {}
    for job in set(dag.bfs(dag.dependencies, *joint)) & unfinished - joint:
        if run := run_of(job):
            found = set(dag.bfs(dag.dependencies, job)) & failures.keys()
            causes.setdefault(run, set()).update(found)
    left_out = {
        run: min(
            (
                failures[job]
                for job in found or failures
                if failures[job].word.is_failure
            ),
            key=lambda one: one.log,
        )
        for run, found in sorted(causes.items())
    }
    if len(left_out) == len(ALL_RUNS):
        return []
    overlay = Path(RESULTS) / "failed.json"
    content = {
        run: {"rule": one.rule, "reason": one.word.reason, "log": one.log}
        for run, one in left_out.items()
    }
    said = f"{len(left_out)} of {len(ALL_RUNS)} runs failed: {', '.join(left_out)}"
    try:
        overlay.write_text(json.dumps({"failed": content}))
    except OSError as error:
        return [f"error: {said}; {overlay}: cannot be written, {error.strerror}"]
    try:
        ended = run_second_pass(
            sys.argv[1:],
            asked=workflow.dag_settings.targets,
            targets=[str(path) for job in joint for path in job.output],
            rules=JOINT,
            configfiles=[*workflow.config_settings.configfiles, overlay],
        )
    finally:
        overlay.unlink()
    if ended:
        return [f"error: {said}; and the others could not be compared"]
    return [
        f"{said}; the comparison and the report are of the others, and say why. {outcome()}"
    ]
