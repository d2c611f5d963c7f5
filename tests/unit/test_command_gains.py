"""The command `gains`: its answer, its numbers in every format, and how it ends."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import outlier_features
import zoo
from outlier_features.command.main import main


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    path = tmp_path_factory.mktemp("dump") / "dump.safetensors"
    damped = torch.ones(8)
    damped[5] = -0.25
    save_file(
        {"rmsnorm_gammas/attn_norm": torch.ones(2, 8), "rmsnorm_gammas/mlp_norm": damped,
         "rmsnorm_gammas/q_norm": torch.ones(4), "bad": torch.tensor([1.0, float("nan")])}, path,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return zoo.save("gemma2", tmp_path_factory.mktemp("gemma"))


def run(capsys, *arguments):
    status = main(["gains", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_answer_comes_first(dump, capsys):
    status, out, err = run(capsys, "--input", dump)
    assert status == 0 and err == ""
    assert out.splitlines()[0] == "All gains exactly 1.0: no (27 of 28 gains, in 4 of 4 norms)"
    _, out, _ = run(capsys, "--input", dump, "--keys", "rmsnorm_gammas/attn_norm", "rmsnorm_gammas/q_norm")
    assert out.splitlines()[0] == "All gains exactly 1.0: yes (20 of 20 gains, in 3 of 3 norms)"


def test_json_and_csv(dump, capsys):
    arguments = ("--input", dump, "--dims", "5,0")
    status, out, _ = run(capsys, *arguments, "--format", "json")
    found = json.loads(out)
    assert status == 0 and found["all_exactly_one"] is False
    assert list(found["norms"]) == ["attn_norm.0", "attn_norm.1", "mlp_norm", "q_norm"]
    mlp = found["norms"]["mlp_norm"]
    assert mlp == {
        "shape": [8], "size": 8, "dtype": "float32", "parameterization": "w", "exactly_one": 7, "all_one": False,
        "min": -0.25, "max": 1.0, "mean": 6.75 / 8, "median": 1.0,
        "dims": [{"dim": 5, "gain": -0.25, "rank": 8, "ratio": 0.25}, {"dim": 0, "gain": 1.0, "rank": 1, "ratio": 1}],
    }  # fmt: skip
    assert "dims" not in found["norms"]["q_norm"]  # narrower than the stream
    rows = list(csv.DictReader(io.StringIO(run(capsys, *arguments, "--format", "csv")[1])))
    values = {(row["key"], row["table"], row["row"], row["quantity"]): row["value"] for row in rows}
    assert len(values) == len(rows)
    assert values["", "summary", "", "all_exactly_one"] == "false"
    assert values["mlp_norm", "dims", "5", "ratio"] == "0.25" and values["mlp_norm", "summary", "0", "shape"] == "8"


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_output_file(dump, tmp_path, capsys, form):
    arguments = ("--input", dump, "--dims", "5", "--format", form)
    printed = run(capsys, *arguments)[1]
    assert run(capsys, *arguments, "--output", tmp_path / "new" / "found") == (0, "", "")
    assert (tmp_path / "new" / "found").read_text() == printed


def test_a_model(gemma, capsys):
    _, out, _ = run(capsys, "--model", gemma, "--dims", "7", "--format", "json")
    found = json.loads(out)
    module = zoo.build("gemma2").model.layers[2].pre_feedforward_layernorm
    row = found["norms"]["model.layers.2.pre_feedforward_layernorm"]
    effective = 1 + module.weight.detach().double().numpy()
    assert found["all_exactly_one"] is False and len(found["norms"]) == 4 * zoo.BLOCKS + 1
    assert (row["parameterization"], row["kind"], row["site"], row["layer"]) == ("1 + w", "rms", "mlp_norm", 2)
    assert row["max"] == effective.max() and row["bias_max_abs"] is None
    assert row["dims"][0]["gain"] == effective[7]
    assert row["dims"][0]["ratio"] == pytest.approx(abs(effective[7]) / np.median(abs(np.delete(effective, 7))))
    _, out, _ = run(capsys, "--model", gemma)
    assert "│ model.norm " in out and "1 + w" in out


def test_a_fetched_model(gemma, tmp_path, capsys):
    (tmp_path / "models/mine").mkdir(parents=True)
    record = {"location": str(gemma), "origin": "x", "revision": "0", "files": {}, "trust_remote_code": False}
    (tmp_path / "models/mine/source.json").write_text(json.dumps(record))
    by_name = run(capsys, "--model", "mine", "--resources", tmp_path, "--format", "json")
    assert by_name == run(capsys, "--model", gemma, "--format", "json") and by_name[0] == 0


def test_models_without_gains_and_undecided_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(zoo.CONFIGS, "olmo", zoo.CONFIGS["llama"])
    zoo.save("olmo", tmp_path / "olmo")
    status, out, _ = run(capsys, "--model", tmp_path / "olmo")
    assert status == 0 and out.startswith("All gains exactly 1.0: no norm has a gain (0 of 0 gains, in 0 of 9 norms)")
    zoo.save("qwen3_next", tmp_path / "next")
    _, out, _ = run(capsys, "--model", tmp_path / "next")
    assert "model.layers.0.linear_attn.norm: undecided, its output ignores" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "gone"), "gone: expected a whole safetensors file"),
        (("--model", "gone"), "--model: found 'gone', expected a directory with a config.json, or a name for which"),
        (("--input", "DUMP", "--keys", "bad"), "bad: 1 of its 2 gains are NaN or infinite"),
        (("--input", "DUMP", "--dims", "8"), "--dims: found 8, expected dims below 8, the width of the norms"),
        (("--input", "DUMP", "--keys", "none"), "has no tensor 'none'"),
    ],
)
def test_mistakes_are_one_line(dump, capsys, arguments, message):
    status, out, err = run(capsys, *(dump if one == "DUMP" else one for one in arguments))
    assert status == 1 and out == "" and message in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["--input", "a", "--model", "b"], ["--model", "b", "--keys", "k"], ["--input", "a", "--dims", "1,1"],
     ["--input", "a", "--dims", "x"], ["--input", "a", "--dims", "-1"], ["--input", "a", "--format", "xml"]],
)  # fmt: skip
def test_usage_mistakes(arguments):
    with pytest.raises(SystemExit) as ended:
        main(["gains", *arguments])
    assert ended.value.code == 2


def test_the_input_is_not_overwritten(dump):
    with pytest.raises(SystemExit):
        main(["gains", "--input", str(dump), "--output", str(dump)])


def test_a_file_is_read_without_torch(dump):
    package = os.path.dirname(os.path.dirname(outlier_features.__file__))
    code = (
        "import sys; from outlier_features.command.main import main; status = main(sys.argv[1:]);"
        "sys.exit(status or ('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "gains", "--input", str(dump)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": package},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
