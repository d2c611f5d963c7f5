"""`outlier-features show`: what a run found, in the terminal and for programs."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import outlier_features
from fake_run import FakeRun
from outlier_features.command.main import main
from outlier_features.errors import InputError

PACKAGE = Path(outlier_features.__file__).parent.parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    FakeRun().write(folder / "tiny/text")
    FakeRun(model="second", massive=(), missing={"loss": InputError("it predicts nothing")}).write(
        folder / "second/text"
    )
    return folder


def shown(*arguments, capsys):
    assert main(["show", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_every_run_is_shown_with_its_counts_dims_loss_and_what_was_not_found(results, capsys):
    text = shown(results, capsys=capsys)
    second, first = text.split("\ntiny/text: ")
    assert second.startswith("second/text: toy, 4 layers, d_model 64, 2 sequences")
    assert "Population all, 12 positions" in first and "Population without_first, 10 positions" in first
    dims = pl.read_parquet(results / "tiny/text/dims.parquet").filter(population="all")
    for rule, selected in (("dettmers", 1), ("massive", 2)):
        having = dims.filter(rule=rule)
        line = next(line for line in first.splitlines() if f" {rule} " in line and " of " in line)
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        assert cells[2] == f"{selected} of {len(having)}"
        assert cells[4:] == [f"{having[name].sum():,}" for name in ("locations", "occurrences")]
    row = dims.filter(rule="massive", dim=7).row(0, named=True)
    assert any(line.split("│")[1:2] == [" 7   "] and f"{row['max_abs']:,.0f}" in line for line in first.splitlines())
    assert "perplexity 7.389" in first  # exp(10 / 5)
    assert "perplexity" not in second and "\n- The loss cannot be had: it predicts nothing." in second
    assert "finds no massive activation over all tokens" in second


def test_one_run_is_shown_by_its_directory(results, capsys):
    assert shown(results / "tiny/text", capsys=capsys).startswith("tiny/text: ")


def test_json_is_the_summaries(results, capsys):
    found = json.loads(shown(results, "--format", "json", capsys=capsys))
    assert list(found) == ["second/text", "tiny/text"]
    for name, one in found.items():
        summary = json.loads((results / name / "summary.json").read_text())
        assert one == {key: value for key, value in summary.items() if key != "content_crc32"}


def test_csv_has_a_line_for_each_selected_dim(results, capsys, tmp_path):
    shown(results, "--format", "csv", "--output", tmp_path / "dims.csv", capsys=capsys)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "dims.csv").read_text())))
    expected = {
        (name, *row.values())
        for name in ("tiny", "second")
        for row in pl.read_parquet(results / name / "text/dims.parquet")
        .filter("selected")
        .select("population", "rule", "sites", "dim", "max_abs")
        .to_dicts()
    }
    keys = ("model", "population", "rule", "sites")
    found = {(*(row[key] for key in keys), int(row["dim"]), float(row["max_abs"])) for row in rows}
    assert found == expected and len(rows) == len(expected) > 4
    assert {row["one_sided"] for row in rows} <= {"true", "false"}
    assert {row["step_down"] for row in rows if row["dim"] == "5"} == {""}


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_what_holds_no_run_is_one_error_line(tmp_path, place, capsys):
    assert main(["show", str(tmp_path / place)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"error: {tmp_path / place}: found no summary.json in it, expected a directory of results")


def test_a_damaged_summary_is_named(results, tmp_path, capsys):
    whole = (results / "tiny/text/summary.json").read_text()
    (tmp_path / "tiny/text").mkdir(parents=True)
    (tmp_path / "tiny/text/summary.json").write_text(whole.replace('"blocks": 4', '"blocks": 5'))
    assert main(["show", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "tiny/text/summary.json: " in err and "does not have the checksum" in err


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(results, width):
    """On a terminal of its own."""
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "COLUMNS": str(width), "TERM": "dumb", "NO_COLOR": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "outlier_features.command.main", "show", str(results)], stdout=slave, env=environment
    ) as process:
        os.close(slave)
        written = b""
        while True:
            try:
                part = os.read(master, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            written += part
    os.close(master)
    assert process.returncode == 0
    lines = written.decode().replace("\r", "").splitlines()
    assert max(map(len, lines)) <= width and any("dettmers" in line for line in lines)


def test_neither_torch_nor_numba_is_imported(results):
    code = (
        "import sys; from outlier_features.command.main import main; main(['show', sys.argv[1]]); "
        "sys.exit(bool({'torch', 'numba', 'transformers', 'plotly'} & {*sys.modules}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    done = subprocess.run([sys.executable, "-c", code, str(results)], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done
