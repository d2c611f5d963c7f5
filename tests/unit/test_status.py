"""How far runs have come: from files and logs that are written here, and a stand-in for Snakemake that really runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from outlier_features.command.main import main
from outlier_features.files.artifacts import HOST
from outlier_features.run.local_models import LocalModels
from outlier_features.run.orphans import can_be_found
from outlier_features.status.planned_jobs import jobs_of
from outlier_features.status.run_status import status_of
from test_plan_run import BASE, SCHEMA, config_of, resolve_config

SNAKEMAKE = "import subprocess, sys; subprocess.run(['bash', '-c', f'set -e; {sys.executable} {sys.argv[1]}; true'])"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with the configuration of two models and one text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config_of(tmp_path, corpora=["one"])))
    return tmp_path


def config(**changes):
    overlay = yaml.safe_load(Path("mine.yaml").read_text())
    return resolve_config({**BASE, **overlay, **changes}, SCHEMA)


def jobs(model):
    return {(job.rule, job.chunk): job for job in jobs_of(config(), model, "one", {})}


def write(*paths, text="", age=0.0):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (time.time() - age,) * 2)


def state(model="one"):
    [found] = [one for one in status_of(config(), Path.cwd())["runs"] if one["run"] == f"{model}/one"]
    return found


def test_a_run_is_done_once_all_that_is_asked_of_it_is_there(place):
    assert state()["state"] == "missing" and state()["since"] is None
    for job in jobs("one").values():
        write(*job.files)
    assert state()["state"] == "done" and state()["since"] and state("other")["state"] == "missing"
    for file in place.glob("results/one/one/activations/*"):  # large, and no longer needed
        file.unlink()
    assert state()["state"] == "done" and state()["stages"]["extract_activations"] == {"done": 0, "jobs": 3}
    (place / "results/one/one/dims.parquet").unlink()
    assert state()["state"] == "missing"


def test_chunks_are_counted(place):
    for chunk in ("0-1", "4-4"):
        write(*jobs("one")["extract_activations", chunk].files)
    write(jobs("one")["extract_activations", "2-3"].files[0])  # not all that the job leaves
    assert state()["stages"]["extract_activations"] == {"done": 2, "jobs": 3}


def test_a_log_says_how_a_job_failed_that_left_no_files(place):
    job = jobs("one")["extract_activations", "2-3"]
    for text, reason in (
        ("error: x: found this\n", "x: found this"),
        ("run: 5%\n", "ended without a word: killed, or out of memory"),
        ("interrupted\n", None),
        ("not run: another chunk failed\n", None),
    ):
        write(job.log, text=text)
        assert [one["reason"] for one in state()["failures"]] == ([reason] if reason else [])
        assert state()["state"] == ("failed" if reason else "missing")
    write(job.log, text="run: 100%\n", age=60)
    write(job.benchmark)  # which Snakemake writes once a job has succeeded: its files were removed later
    assert state()["state"] == "missing"
    write(job.log, text="error: x\n")
    write(*job.files)
    assert state()["failures"] == []  # a later attempt left them
    write(jobs("one")["fetch_corpus", None].log, text="error: no text\n")
    assert (state()["state"], state("other")["state"]) == ("failed", "failed")  # both need it


def test_a_dump_that_cannot_be_read_is_not_done(place):
    (place / "cut.safetensors").write_bytes(b"\x09")
    save_file({"attn": np.ones((2, 3, 4, 8), np.float32)}, place / "d.safetensors")
    models = {name: {"dump": f"{name}.safetensors", "keys": {"attn_norm": "attn"}} for name in ("cut", "d")}
    catalog = {**config()["catalog"], "models": models}
    found = status_of(config(models=["cut", "d"], catalog=catalog), place)
    assert [one["state"] for one in found["runs"]] == ["missing", "missing"]
    assert [len(one["stages"]) > 2 for one in found["runs"]] == [False, True]
    assert [*LocalModels.of(models).dumps] == ["d"]


@pytest.mark.skipif(not can_be_found(), reason="no /proc here")
def test_running_is_what_a_snakemake_runs_that_holds_the_lock(place):
    job = jobs("one")["extract_activations", "2-3"]
    script = place / ".snakemake/scripts/tmpab_1.extract_activations.py"
    told = f"told = {os.fsencode(job.log)!r}\nimport time\nprint('ready', flush=True)\ntime.sleep(60)\n"
    write(script, text=told)
    write(place / ".snakemake/locks/0.output.lock", place / "snakemake", text=SNAKEMAKE)
    process = subprocess.Popen(
        [sys.executable, place / "snakemake", script], cwd=place, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        found = status_of(config(), place)
        assert found["at_work"] is None and "runs no jobs" in found["note"] and state()["state"] == "missing"
        write(place / f".snakemake/locks/{HOST}-{process.pid}.owner")
        found = status_of(config(), place)
        assert found["at_work"]["process"] == process.pid and found["note"] is None
        assert [one["state"] for one in found["runs"]] == ["running", "missing"]
        [running] = found["runs"][0]["running"]
        assert (running["rule"], running["chunk"], running["log"]) == ("extract_activations", "2-3", str(job.log))
        assert abs(time.time() - time.mktime(time.strptime(running["since"][:19], "%Y-%m-%dT%H:%M:%S"))) < 120
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = status_of(config(), place)
        assert found["at_work"] is None and "a killed run has left its lock" in found["note"]
        assert "goes on without it" in found["runs"][0]["failures"][0]["reason"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_command_prints_the_states_and_writes_nothing(place, capsys):
    for job in jobs("other").values():
        write(*job.files)
    write(jobs("one")["fetch_model", None].log, text="error: hub: refused\n")
    before = sorted(place.rglob("*"))
    assert main(["status", "--configfile", "mine.yaml"]) == 0
    text = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in text.splitlines() if "│" in line}
    assert rows == {"one/one": "failed", "other/one": "done", "comparison and report": "missing"}
    assert "one/one: rule fetch_model: hub: refused; log: results/logs/fetch_model/one.log" in text
    assert main(["status", "--configfile", "mine.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == status_of(config(), place)["runs"]
    assert sorted(place.rglob("*")) == before
