"""What a killed run leaves, with real processes: a stand-in for Snakemake that starts a job and waits."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from outlier_features.command.main import main
from outlier_features.errors import InputError
from outlier_features.files.artifacts import HOST
from outlier_features.run.orphans import can_be_found, end, orphaned_jobs, running_snakemakes
from outlier_features.run.recovery import begin_run, recover, require_nothing_left

pytestmark = pytest.mark.skipif(not can_be_found(), reason="no /proc here")

SNAKEMAKE = "import subprocess, sys; subprocess.run(['bash', '-c', f'set -e; {sys.executable} {sys.argv[1]}; true'])"
JOB = "import subprocess, sys; print('ready', flush=True); subprocess.run(['sleep', '60'])"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)


@pytest.fixture
def start(tmp_path):
    """Starts such a run in a directory; whatever is left of it is ended after the test."""
    started = []

    def start(name: str, job: str = JOB) -> tuple[Path, subprocess.Popen]:
        directory = tmp_path / name
        (directory / ".snakemake/scripts").mkdir(parents=True)
        (directory / ".snakemake/locks").mkdir()
        (directory / ".snakemake/locks/0.output.lock").write_text("results/x\n")
        script = directory / ".snakemake/scripts/tmpab_1.detect_outliers.py"
        script.write_text(job)
        (directory / "snakemake").write_text(SNAKEMAKE)
        command = [sys.executable, directory / "snakemake", script]
        process = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return directory, process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def alive(group):
    """Commands of the processes of a group, once bash has had the time to end; zombies are dead."""
    for _ in range(100):
        listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in listed.splitlines()]
        found = [args for number, state, args in rows if number == str(group) and state[0] != "Z"]
        if not found:
            break
        time.sleep(0.1)
    return found


def kill(process):
    process.kill()
    process.wait()


def test_a_run_at_work_is_left_alone(start):
    directory, process = start("here")
    assert [one.number for one in running_snakemakes(directory)] == [process.pid]
    assert orphaned_jobs(directory) == [] and running_snakemakes(directory.parent) == []
    for refuse in (recover, require_nothing_left):
        with pytest.raises(InputError, match=rf"a run is at work here, snakemake \(process {process.pid}\)"):
            refuse(directory)
    assert process.poll() is None


def test_the_jobs_of_a_killed_run_are_ended_and_no_others(start, capsys):
    directory, process = start("here")
    other, living = start("other")
    other2, killed = start("other2")
    kill(process)
    kill(killed)
    (orphan,) = orphaned_jobs(directory)
    assert orphan.script == "detect_outliers" and str(orphan) == f"detect_outliers (process {orphan.number})"
    with pytest.raises(InputError, match=rf"left its lock and detect_outliers \(process {orphan.number}\): `make res"):
        require_nothing_left(directory)
    with pytest.raises(InputError, match="of a killed run still at work"):
        begin_run(directory, directory / "results", directory)
    assert orphaned_jobs(directory) == [orphan]
    assert main(["recover", "--directory", str(directory)]) == 0
    assert f"ended {orphan}" in capsys.readouterr().err and orphaned_jobs(directory) == []
    assert alive(process.pid) == []  # neither bash nor sleep
    assert living.poll() is None and len(orphaned_jobs(other2)) == 1 and orphaned_jobs(other) == []


def test_a_job_that_does_not_listen_is_killed(start):
    directory, process = start("here", STUBBORN)
    kill(process)
    begun = time.monotonic()
    assert end(orphaned_jobs(directory), patience=1.0) == [] and orphaned_jobs(directory) == []
    assert 0.9 < time.monotonic() - begun < 20


def test_a_lock_without_processes_is_said_and_no_more(start, capsys):
    directory, process = start("here")
    kill(process)
    recover(directory)
    assert main(["recover", "--check", "--directory", str(directory)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        f"error: {directory}: a killed run has left its lock: `make resume` goes on "
        "(without make: `outlier-features recover --help`)"
    )
    (directory / ".snakemake/locks/0.output.lock").unlink()
    assert main(["recover", "--check", "--directory", str(directory)]) == 0


def test_a_run_of_another_host_may_be_at_work(tmp_path):
    locks = tmp_path / ".snakemake/locks"
    locks.mkdir(parents=True)
    begin_run(tmp_path, tmp_path / "results", tmp_path)
    assert [path.name for path in locks.iterdir()] == [f"{HOST}-{os.getpid()}.owner"]
    recover(tmp_path)
    (locks / "login-2-4711.owner").touch()
    with pytest.raises(InputError, match=r"process 4711 on login-2 holds the lock"):
        recover(tmp_path)


def test_jobs_in_a_cluster_s_queue_may_be_at_work(tmp_path, monkeypatch):
    squeue = tmp_path / "bin/squeue"
    squeue.parent.mkdir()
    squeue.write_text(
        f"#!/bin/sh\necho '17 {tmp_path.resolve()}'\necho '18 /elsewhere'\necho '19 {tmp_path.resolve()}'\n"
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(squeue.parent), prepend=os.pathsep)
    with pytest.raises(InputError, match="end them with `scancel 17 19`"):
        recover(tmp_path)
    squeue.write_text("#!/bin/sh\nexit 1\n")
    recover(tmp_path)


def test_a_run_removes_what_killed_jobs_left(tmp_path, capsys):
    code = "import os; print(os.getpid())"
    gone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    mine, other = (tmp_path / f"model/corpus/.x.{host}-{gone}-01234567.tmp" for host in (HOST, "node7"))
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"12345")
    other.write_bytes(b"123")
    begin_run(tmp_path, tmp_path, tmp_path / "none")
    assert not mine.exists() and other.exists()
    said = capsys.readouterr().err
    assert f"removed {mine}, 5 bytes" in said and f"process {gone} on node7" in said
