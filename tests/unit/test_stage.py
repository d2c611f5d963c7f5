"""How a stage ends, and what stands in its log."""

import logging
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest

from outlier_features.errors import DamagedFile, InputError, stage
from outlier_features.run.failure import Failure, failure_lines


def run(log, body):
    with pytest.raises(SystemExit) as ended, stage(log):
        body()
    return ended.value.code, log.read_text()


def test_stderr_is_in_the_terminal_and_in_the_log(tmp_path, capsys):
    handler = logging.StreamHandler()
    logging.getLogger("library").addHandler(handler)
    with stage(tmp_path / "logs/x.log"):
        print("to stderr", file=sys.stderr)
        logging.getLogger("library").warning("of a library")
    logging.getLogger("library").removeHandler(handler)
    print("later", file=sys.stderr)
    assert (tmp_path / "logs/x.log").read_text() == "to stderr\nof a library\n"
    assert capsys.readouterr().err == "to stderr\nof a library\nlater\n"


def test_a_progress_bar_leaves_its_last_line(tmp_path, capsys):
    with stage(tmp_path / "x.log"):
        for done in range(101):
            sys.stderr.write(f"\rwork: {done}%")
        sys.stderr.write("\nnext\r\nlast")
    assert (tmp_path / "x.log").read_text() == "work: 100%\nnext\nlast\n"
    assert capsys.readouterr().err.count("\r") == 102


def test_a_long_progress_bar_leaves_a_line_now_and_then(tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with stage(tmp_path / "x.log"):
        for done in range(20):
            sys.stderr.write(f"\rwork: {done}")
    lines = (tmp_path / "x.log").read_text().splitlines()
    assert lines[-1] == "work: 19" and 4 <= len(lines) <= 9


def test_an_input_error_is_one_line(tmp_path, capsys):
    def body():
        print("before", file=sys.stderr)
        raise InputError("key: found\n  this")

    assert run(tmp_path / "x.log", body) == (1, "before\nerror: key: found this\n")
    assert capsys.readouterr().err == "before\nerror: key: found this\n"


def test_only_a_damaged_file_among_the_results_is_to_be_deleted(tmp_path):
    log = tmp_path / "results/logs/rule/model/corpus.log"

    def last(error):
        def body():
            raise error

        return run(log, body)[1].splitlines()[-1]

    mine = tmp_path / "results/model/corpus/dims.parquet"
    assert last(DamagedFile(mine, "is cut")) == f"error: {mine}: is cut; delete it to have it made again"
    assert last(DamagedFile(tmp_path / "model.safetensors", "is cut")).endswith("model.safetensors: is cut")
    assert last(InputError(f"{mine}: is cut")).endswith("dims.parquet: is cut")


def test_the_last_word_has_a_line_of_its_own_under_a_progress_bar(tmp_path):
    def body():
        sys.stderr.write("\rwork: 5%")
        raise InputError("x: found this")

    _, text = run(tmp_path / "x.log", body)
    assert text.splitlines()[-2:] == ["work: 5%", "error: x: found this"]
    assert (tmp_path / "x.log").read_text() == "work: 5%\nerror: x: found this\n"


def test_any_other_error_leaves_its_traceback_and_is_said_to_be_ours(tmp_path):
    log = tmp_path / "x.log"
    status, text = run(log, lambda: [][1])
    assert status == 1 and text.startswith("Traceback") and "\nIndexError: list index out of range\n" in text
    last = text.splitlines()[-1]
    assert last.startswith("error: IndexError: list index out of range at line ") and "of test_stage.py; " in last
    assert "a fault of outlier-features" in last and str(log) in last
    assert all(f"{name} {version(name)}" in last for name in ("outlier-features", "torch", "transformers", "snakemake"))
    assert sentence(log, 0.0) == f"rule detect failed: {last.removeprefix('error: ')}; log: {log}"


def sentence(log, since):
    return Failure.of_job("detect", "m/c", [log], since).sentence


def test_chunks_that_would_fail_alike_are_not_tried(tmp_path, monkeypatch):
    logs = tmp_path / "logs/extract/m/c"
    tried = []

    def body():
        tried.append(1)
        raise InputError("x: found this")

    assert run(logs / "0-3.log", body)[0] == run(logs / "4-7.log", body)[0] == 1 and len(tried) == 2  # not in a run
    monkeypatch.setenv("OUTLIER_FEATURES_SINCE", str(time.time() + 60))
    run(logs / "4-7.log", body)
    assert len(tried) == 3  # what an earlier run left says nothing
    monkeypatch.setenv("OUTLIER_FEATURES_SINCE", str(time.time() - 60))
    status, text = run(logs / "8-9.log", body)
    assert status == 1 and len(tried) == 3 and "error:" not in text and str(logs / "0-3.log") in text
    run(logs.parent / "d/8-9.log", body)
    assert len(tried) == 4  # another run's
    failures = [Failure.of_job("extract", "m/c", [logs / f"{chunk}.log"], 0.0) for chunk in ("0-3", "4-7", "8-9")]
    assert [*failure_lines(failures)] == [
        f"rule extract failed: x: found this; log: {logs / '0-3.log'} (and of 1 other job of m/c)"
    ]


WAITS = """
import sys, time
from outlier_features.files.artifacts import replacing
from outlier_features.errors import stage
with stage(sys.argv[1]), replacing(sys.argv[2]) as file:
    file.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "status", "line"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_leaves_nothing_half_written(tmp_path, number, status, line):
    log = tmp_path / "logs/x.log"
    process = subprocess.Popen([sys.executable, "-c", WAITS, log, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(30) == status
    assert log.read_text() == f"{line}\n" and os.listdir(tmp_path) == ["logs"]
    assert sentence(log, 0.0) == f"error: rule detect was {line}; log: {log}"


def test_a_failed_job_s_line_names_its_log(tmp_path):
    log, begun = tmp_path / "x.log", time.time() - 1
    ending = f"; log: {log}"
    silent = f"error: rule detect ended without a word: killed, or out of memory{ending}"
    never = sentence(log, begun)
    assert never.startswith("error: rule detect never began: ") and "not submitted" in never
    # It is written for whoever reads it later.
    assert f"error: rule detect {log.read_text().strip().removeprefix('error: ')}{ending}" == never
    for text, line in (
        ("", silent),
        ("work: 5%\n", silent),
        ("work: 5%\nerror: x: found this\n", f"rule detect failed: x: found this{ending}"),
        ("error: x: found this\nwork: 6%\n", f"rule detect failed: x: found this{ending}"),  # a bar that is closed
        ("work: 5%\nterminated\nwork: 6%\n", f"error: rule detect was terminated{ending}"),
        (
            "Traceback (most recent call last):\n  File\nIndexError: far\n",
            f"error: rule detect failed: IndexError: far{ending}",
        ),
    ):
        log.write_text(text)
        assert sentence(log, begun) == line
    assert sentence(log, time.time() + 1) == never  # an earlier job's
