"""What `outlier-features run` makes of its arguments, of what Snakemake tells it, and of a run that ended."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from outlier_features import __version__
from outlier_features.command.main import COMMANDS, main
from outlier_features.command.run_snakemake import run_quietly
from outlier_features.errors import InputError
from outlier_features.run.events import events_in, tell, told_to
from outlier_features.run.overlay import overlay_of, write_overlay
from outlier_features.status.time_left import RunProgress
from test_encoder_decoder import build as encoder_decoder

CATALOG = {
    "models": {"small": {"pypi": "small==1"}, "large": {"hub": "org/large", "dtype": "bfloat16"}},
    "corpora": {"docs": {}},
}


def overlay(model, **keys):
    return overlay_of(model, CATALOG, **{"sample": {"sequences": None, "tokens": None}, **keys})


@pytest.mark.parametrize(
    ("model", "name", "entry"),
    [
        ("small", "small", None),
        ("large@step10", "large@step10", None),
        ("org/other", "other", {"hub": "org/other"}),
        ("org/other@v1.0", "other@v1.0", {"hub": "org/other"}),
        ("org/other-GGUF/q4/other-Q4.gguf", "other-Q4", {"hub": "org/other-GGUF", "path": "q4/other-Q4.gguf"}),
        ("./models/my model", "my-model", {"path": "models/my model"}),
        ("models/x.gguf", "x", {"path": "models/x.gguf"}),
        ("models/x.encoder", "x.encoder", {"path": "models/x.encoder"}),  # a directory of this name
    ],
)
def test_a_model_is_what_it_is_called(model, name, entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models/my model").mkdir(parents=True)
    Path("models/x.encoder").mkdir()
    Path("models/x.gguf").touch()
    found = overlay(model)
    assert found["models"] == [name]
    assert found.get("catalog") == (None if entry is None else {"models": {name.partition("@")[0]: entry}})


@pytest.mark.parametrize(
    ("model", "name", "entry"),
    [
        ("org/t5.decoder", "t5.decoder", {"hub": "org/t5"}),
        ("org/t5@step10.encoder", "t5@step10.encoder", {"hub": "org/t5"}),
        ("models/t5.encoder", "t5.encoder", {"path": "models/t5"}),
    ],
)
def test_a_half_is_of_the_whole_model(model, name, entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models/t5").mkdir(parents=True)
    found = overlay(model)
    assert found["models"] == [name] and found["catalog"]["models"] == {"t5": entry}


def test_what_both_halves_take_is_said_once(tmp_path, monkeypatch, capsys):
    """They are loaded as a whole; how much is counted on the model itself."""
    monkeypatch.chdir(tmp_path)
    model = encoder_decoder("t5")
    model.save_pretrained("t5")
    Path("a.txt").write_text("A text.")
    assert main(["run", "t5", "--text", "a.txt", "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert [line for line in said if "parameters" in line] == [said[0]] and f"t5: {parameters:,} par" in said[0]
    assert [line.partition(":")[0] for line in said[1:3]] == ["t5.encoder on a", "t5.decoder on a"]


@pytest.mark.parametrize("model", ["smal", "./gone", "org/", "a b"])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(InputError, match=f"found '{model}', expected a model of the catalog"):
        overlay(model)


def test_only_what_was_chosen_is_in_the_overlay():
    found = overlay("large", texts=[Path("a/dump.txt"), Path("b.txt")], dtype="float32", results=Path("r"),
                    sample={"sequences": 3, "tokens": None})  # fmt: skip
    assert found == {
        "models": ["large"],
        "corpora": ["my-dump"],
        "sample": {"sequences": 3},
        "extract": {"dtype": "float32"},
        "results": "r",
        # The catalog's own dtype would come before.
        "catalog": {
            "models": {"large": {"dtype": "float32"}},
            "corpora": {"my-dump": {"files": ["a/dump.txt", "b.txt"]}},
        },
    }  # fmt: skip


def test_an_overlay_is_never_overwritten(tmp_path):
    first = write_overlay({"models": ["m"]}, tmp_path, "run")
    assert first.read_text().startswith("# run m.yaml\n") and yaml.safe_load(first.read_text()) == {"models": ["m"]}
    assert write_overlay({"models": ["m"]}, tmp_path, "run") == first
    other = write_overlay({"models": ["m"], "results": "r"}, tmp_path, "run")
    assert other.name == "m-2.yaml" and write_overlay({"models": ["m"]}, tmp_path, "run") == first


def record(event, **told):
    made = logging.LogRecord("snakemake", logging.INFO, "", 0, "", (), None)
    made.__dict__ |= {"event": type("Event", (), {"value": event}), **told}
    return made


def test_only_a_child_of_the_command_tells_events(monkeypatch):
    reading, writing = os.pipe()
    ((name, own),) = told_to(writing).items()
    for variable in (own, f"{os.getppid()}:{writing}"):  # of a process that this one has started, and of this one
        monkeypatch.setenv(name, variable)
        tell(record("job_info", jobid=3, rule_name="extract", rule_msg="Run", other=object()))
        tell(record("shellcmd"))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert [*events_in(pipe.read())] == [
            {"event": "job_info", "jobid": 3, "rule_name": "extract", "rule_msg": "Run"}
        ]


def test_time_left_follows_the_pace():
    found = RunProgress({"short": 10.0, "long": 100.0})
    assert found.seconds_left(0.0) is None
    found.take({"event": "run_info", "stats": {"short": 2, "long": 1, "total": 3}}, 0.0)
    assert found.jobs == 3 and found.seconds_left(0.0) == pytest.approx(120)
    for number, rule in enumerate(("short", "short", "long")):
        found.take({"event": "job_info", "jobid": number, "rule_name": rule, "rule_msg": rule}, 0.0)
    found.take({"event": "job_finished", "job_id": 0}, 20.0)  # twice what was expected, and the expectation is of 12 s
    assert found.share == pytest.approx(10 / 120) and found.finished == 1
    assert found.seconds_left(20.0) == pytest.approx(110 * (20 + 12) / (10 + 12))
    assert found.seconds_left(50.0) == pytest.approx(110 * 32 / 22 - 30)
    found.take({"event": "job_finished", "job_id": 1}, 60.0)
    found.take({"event": "job_finished", "job_id": 2}, 200.0)
    assert found.seconds_left(200.0) == 0.0 and found.share == 1.0


def test_without_a_measured_run_nothing_is_promised_before_a_job_has_ended():
    found = RunProgress({})
    found.take({"event": "run_info", "stats": {"tokenize_corpus": 1, "extract_activations": 1, "total": 2}}, 0.0)
    assert found.seconds_left(5.0) is None
    found.take({"event": "job_info", "jobid": 0, "rule_name": "tokenize_corpus", "rule_msg": None}, 5.0)
    found.take({"event": "job_finished", "job_id": 0}, 10.0)
    assert found.seconds_left(10.0) == pytest.approx(30)  # one that loads a model counts three times


CHILD = """\
import os, sys, time, json, signal
parent, descriptor = os.environ["OUTLIER_FEATURES_EVENTS"].split(":")
os.write(int(descriptor), json.dumps({"event": "run_info", "stats": {"a": 1, "total": 1}}).encode() + b"\\n")
"""


def quietly(tmp_path, code):
    return run_quietly([sys.executable, "-c", CHILD + code], os.environ, tmp_path / "logs/snakemake.log", {})


def test_of_a_failed_run_each_failed_job_is_named_once(tmp_path, capfd):
    said = (
        "noise\n\rbar 50 %\rerror: it broke\nrule a failed: it broke; log: results/logs/a.log\n"
        "error: rule b ended without a word; log: results/logs/b.log\nerror: 1 of 2 runs failed"
    )
    ended = quietly(tmp_path, f"print({said!r})\nsys.exit(1)")
    assert ended.status == 1 and ended.errors == [
        "rule a failed: it broke; log: results/logs/a.log",
        "rule b ended without a word; log: results/logs/b.log",
    ]
    assert "noise" not in capfd.readouterr().err and "noise" in (tmp_path / "logs/snakemake.log").read_text()


def test_a_mistake_before_any_job_is_said(tmp_path):
    ended = quietly(tmp_path, "print('x\\nerror: config: models names 1')\nsys.exit(1)")
    assert ended.errors == ["config: models names 1"]
    assert quietly(tmp_path, "") == type(ended)(0, (), tmp_path / "logs/snakemake.log")


def test_what_snakemake_refuses_is_said(tmp_path):
    for said in ("usage: x\n__main__.py: error: unrecognized arguments: --nonsense=3", "noise\nError: no such thing"):
        (line,) = quietly(tmp_path, f"print({said!r})\nsys.exit(2)").errors
        assert said.rpartition("rror: ")[2] in line and str(tmp_path / "logs/snakemake.log") in line


def test_a_profile_or_a_number_of_cores_that_is_none_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("A text.")
    for profile in ("nowhere", "."):  # a directory, but no profile
        assert main(["run", "org/name", "--text", "a.txt", "--profile", profile]) == 1
        assert f"--profile: found {profile!r}, expected a directory that has a config.yaml" in capsys.readouterr().err
    for cores in ("many", "0", "-1"):
        with pytest.raises(SystemExit):
            main(["run", "org/name", "--cores", cores])
        assert f"found {cores!r}, expected a number from 1" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_interrupt_is_passed_on_and_waited_for(tmp_path):
    """To the child and its own children alone, which have time to end; the command goes then."""
    code = (
        "from pathlib import Path\nfrom outlier_features.command.run_snakemake import run_quietly\nimport os, sys\n"
        f"run_quietly([sys.executable, '-c', {CHILD!r} + sys.argv[1]], os.environ, Path('logs/s.log'), {{}})"
    )
    child = (
        "open('ready', 'w').close()\ntry:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.5)\n    open('ended', 'w').close()"
    )
    command = subprocess.Popen([sys.executable, "-c", code, child], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "ready").exists():
        assert command.poll() is None
        time.sleep(0.05)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=30)
    assert command.returncode != 0 and (tmp_path / "ended").exists() and "ending the jobs" in said


def test_version_and_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"outlier-features {__version__}\n"
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS) and "--sequences" in script
    checked = subprocess.run(["bash", "-n"], input=script, text=True, check=False)
    assert checked.returncode == 0


COMPLETE = """
source /dev/stdin
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
call=$(complete -p outlier-features)
call=${call#*-F } && ${call%% *} outlier-features "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_bash_completes_commands_choices_and_files(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    (tmp_path / "model.gguf").touch()
    (tmp_path / "sweeps").mkdir()
    for words, expected in (
        ("ga", ["gallery-export", "gains"]),
        ("run --dtype bf", ["bfloat16"]),
        ("run mod", ["model.gguf"]),
        ("run x --text mo", ["model.gguf"]),
        ("run x --profile sw", ["sweeps"]),
        ("open sw", ["sweeps"]),
    ):
        command = ["bash", "-c", COMPLETE, "bash", "outlier-features", *words.split()]
        done = subprocess.run(command, input=script, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert sorted({one.rstrip("/") for one in done.stdout.split()}) == sorted(expected), words


def test_the_report_is_opened_or_named(tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(opened.append(url)))
    assert main(["open", str(tmp_path)]) == 1 and "report.html is not there" in capsys.readouterr().err
    (tmp_path / "report.html").touch()
    assert main(["open", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert opened == [(tmp_path / "report.html").as_uri()]
