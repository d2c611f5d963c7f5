"""The command line: what it prints, where, and how it ends."""

import csv
import io
import json
import math
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import outlier_features
from outlier_features.command.main import main
from outlier_features.files.artifacts import write_json
from outlier_features.summary.summarize_run import SUMMARY_KEYS

KEY_FIELDS = [
    "shape", "dtype", "threshold", "min_layer_fraction", "elements_over_threshold", "occurrences", "occurrence_rate",
    "locations", "location_rate", "mean_layer_fraction", "quantiles", "dims", "layers", "first_layers", "tokens",
    "magnitudes",
]  # fmt: skip


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    path = tmp_path_factory.mktemp("dump") / "dump.safetensors"
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 4, 3, 8)).astype(np.float32))
    x[..., 5] = 9.5
    x[..., 2] = -7
    x[0, 0, 0, 0] = 7.0
    bad = x.clone()
    bad[0, 1, 0, 0] = bad[5, 1, 0, 0] = float("nan")
    save_file(
        {
            "attn_norm": x, "mlp_input": x.roll(3, dims=3).contiguous(), "narrow": x[..., :7].contiguous(),
            "flat": x[0].clone(), "whole": x.int(),
            "large": torch.where(x == 7.0, 1e300, x.double()), "quiet": x * 0, "bad": bad,
            "empty": torch.zeros(0, 4, 3, 8),
        },
        path,
    )  # fmt: skip
    return path


def run(capsys, *arguments):
    status = main(["count", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_json(dump, capsys):
    status, out, err = run(
        capsys, "--input", dump, "--key", "attn_norm", "--compare-key", "mlp_input", "--format", "json"
    )
    found = json.loads(out)
    assert status == 0 and list(found) == ["attn_norm", "mlp_input", "comparison"]
    for key in ("attn_norm", "mlp_input"):
        assert list(found[key]) == KEY_FIELDS
    assert list(found["attn_norm"]["quantiles"]) == ["q1", "median", "q3", "iqr"]
    assert list(found["attn_norm"]["magnitudes"]) == ["min", "q1", "median", "q3", "max"]
    assert found["attn_norm"]["dims"][0] == {
        "dim": 2, "count": 72, "share": 72 / 145, "positive": 0, "negative": 72, "one_sided": True
    }  # fmt: skip
    assert [row["dim"] for row in found["attn_norm"]["dims"]] == [2, 5, 0]
    assert found["comparison"] == {
        "keys": ["attn_norm", "mlp_input"], "dims": [3, 3], "common": 2, "jaccard": 0.5,
        "top_common": [{"dim": 5, "min_count": 72}, {"dim": 0, "min_count": 1}],
    }  # fmt: skip
    assert "attn_norm: (6, 4, 3, 8) float32, 576 elements" in err


def test_nothing_found_is_null_not_zero(dump, capsys):
    _, out, _ = run(capsys, "--input", dump, "--key", "quiet", "--format", "json", "--quiet")
    found = json.loads(out)["quiet"]
    assert found["mean_layer_fraction"] is None and found["dims"] == [] and found["occurrence_rate"] == 0
    assert set(found["magnitudes"].values()) == {None}
    assert {row["share"] for row in found["layers"] + found["tokens"] + found["first_layers"]} == {None}
    status, out, _ = run(capsys, "--input", dump, "--key", "quiet")
    assert status == 0 and "Outlier dims (first 0)" in out


def test_tables_in_order(dump, capsys):
    status, out, err = run(
        capsys, "--input", dump, "--key", "attn_norm", "--compare-key", "mlp_input", "--quiet", "--no-layer-fraction"
    )
    titles = [
        f"{title} ({key})"
        for key in ("attn_norm", "mlp_input")
        for title in (
            "Activation Outliers", "Outlier Dimensions", "Top 3 Dimensions", "Layer Outlier Occurrences",
            "First-Layer Appearance", "Token Position Outliers", "Outlier Magnitudes",
        )
    ] + ["Key Comparison", "Top Common Outlier Dims (min count)"]  # fmt: skip
    words = " ".join("".join(" " if c in "━┃│─┏┓┡┩└┘┳╇┴" else c for c in out).split())
    places = [words.index(title) for title in titles]
    assert status == 0 and places == sorted(places) and err == ""
    assert "Jaccard (dims) 50.00%" in words and "1 2 72 49.66% 0.00% 100.00% yes" in words


def test_a_table_has_the_largest_and_everything_on_request(tmp_path, capsys):
    """A dump of 40 layers and 300 tokens, in which the later ones have more outliers: hundreds of lines."""
    x = torch.zeros(3, 40, 300, 4)
    for token in range(300):
        x[: 1 + token // 100, token % 40 :, token, 1] = 9.0
    save_file({"x": x}, tmp_path / "x.safetensors")
    arguments = ("--input", tmp_path / "x.safetensors", "--key", "x", "--quiet", "--no-layer-fraction")
    found = json.loads(run(capsys, *arguments, "--format", "json")[1])["x"]
    assert len(found["tokens"]) == 300 and len(found["layers"]) == 40
    _, short, _ = run(capsys, *arguments)
    _, whole, _ = run(capsys, *arguments, "--all")
    assert short.count("\n") < 110 and whole.count("\n") > 300 + 40
    tokens = short.partition("Token Position Outliers (x)")[2].partition("Outlier Magnitudes")[0]
    shown = [int(cells[1]) for line in tokens.splitlines() if (cells := line.split())[:1] == ["│"]]
    least = sorted((row["count"] for row in found["tokens"]), reverse=True)[9]
    assert len(shown) == 10 and shown == sorted(shown)
    assert all(found["tokens"][token]["count"] >= least for token in shown)
    assert "the 10 largest of 300; --all has every one" in " ".join(tokens.split())


def test_csv_holds_the_numbers_of_the_json(dump, capsys):
    arguments = ("--input", dump, "--key", "attn_norm", "--compare-key", "mlp_input")
    found = json.loads(run(capsys, *arguments, "--format", "json")[1])
    rows = list(csv.DictReader(io.StringIO(run(capsys, *arguments, "--format", "csv")[1])))
    values = {(row["key"], row["table"], row["row"], row["quantity"]): row["value"] for row in rows}
    assert len(values) == len(rows)
    assert float(values["attn_norm", "quantiles", "", "q1"]) == found["attn_norm"]["quantiles"]["q1"]
    assert values["attn_norm", "dims", "2", "one_sided"] == "true"
    assert values["mlp_input", "layers", "3", "count"] == str(found["mlp_input"]["layers"][3]["count"])
    assert values["comparison", "summary", "", "jaccard"] == "0.5"
    assert [values["attn_norm", "summary", str(i), "shape"] for i in range(4)] == ["6", "4", "3", "8"]


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_output_file(dump, tmp_path, capsys, form):
    arguments = ("--input", dump, "--key", "attn_norm", "--quiet", "--format", form)
    printed = run(capsys, *arguments)[1]
    assert run(capsys, *arguments, "--output", tmp_path / "new" / "found") == (0, "", "")
    assert (tmp_path / "new" / "found").read_text() == printed
    status, _, err = run(capsys, *arguments, "--output", tmp_path / "new" / "found" / "below")
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1


def test_samples(dump, capsys):
    arguments = ("--input", dump, "--key", "attn_norm", "--format", "json", "--outlier-samples", "0")
    exact = json.loads(run(capsys, *arguments, "--iqr-samples", "exact")[1])["attn_norm"]
    sampled = json.loads(run(capsys, *arguments, "--iqr-samples", "2_000")[1])["attn_norm"]
    assert "samples" not in exact["quantiles"] and sampled["quantiles"]["samples"] == 2000
    assert sampled["magnitudes"] == exact["magnitudes"]
    assert "±" in run(capsys, "--input", dump, "--key", "attn_norm", "--iqr-samples", "50")[1]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("attn_nrom", "has no tensor 'attn_nrom', nearest: attn_norm"),
        ("flat", "flat has shape [4, 3, 8], whose axes may be TLH or LTH or NTH"),
        ("whole", "whole is I32, expected one of F32, BF16, F16"),
        ("large", "layer 0 has 1 values that are NaN or infinite, expected finite ones (float64 is read as float32"),
        ("bad", "layer 1 has 2 values that are NaN or infinite"),
        ("empty", "empty of shape [0, 4, 3, 8] is empty"),
    ],
)
def test_bad_data(dump, capsys, key, message):
    status, out, err = run(capsys, "--input", dump, "--key", key, "--quiet")
    assert status == 1 and out == "" and message in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_bad_files(dump, tmp_path, capsys):
    (tmp_path / "cut").write_bytes(dump.read_bytes()[:-100])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "noise").write_bytes(b"\x05\0\0\0\0\0\0\0[1,2]")
    for name in ("missing", "cut", "empty", "noise", "."):
        status, out, err = run(capsys, "--input", tmp_path / name, "--key", "attn_norm")
        assert status == 1 and out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_dims_of_unequal_width_are_not_compared(dump, capsys):
    status, out, err = run(capsys, "--input", dump, "--key", "attn_norm", "--compare-key", "narrow")
    assert status == 1 and out == "" and "attn_norm has 8 dims and narrow has 7 dims" in err


@pytest.mark.parametrize("arguments", [["--help"], ["count", "--help"], ["count", "--threshold", "six"]])
def test_help_and_usage_mistakes_are_quick(arguments):
    """They wait for no library: numba takes half a second to import, torch two."""
    script = (
        "import sys\nfrom outlier_features.command.main import main\n"
        "try: main(sys.argv[1:])\nfinally: print(*sys.modules)"
    )
    found = process(["-c", script, *arguments], check=False).stdout.splitlines()[-1].split()
    assert "argparse" in found and not {"numpy", "numba", "torch", "rich", "polars"} & set(found)


def process(arguments, check=True, **options):
    package = os.path.dirname(os.path.dirname(outlier_features.__file__))
    environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, check=check, env={**environment, "PYTHONPATH": package, "COLUMNS": "20"},
        **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    "shape",
    [
        (2, 8, 4096, 4096),
        pytest.param((4096, 120, 2, 273), marks=pytest.mark.slow),
        pytest.param((4096, 1, 128, 512), marks=pytest.mark.slow),
    ],
)
def test_a_dump_larger_than_the_memory_that_is_allowed(tmp_path, shape):
    """A gigabyte of zeros, which take no disk, but for known outliers; 320 MiB of data segment, libraries included."""
    n, layers, tokens, dims = shape
    path, size = tmp_path / "dump.safetensors", 4 * math.prod(shape)
    header = json.dumps({"acts": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).ljust(120).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    x = np.memmap(path, np.float32, "r+", 8 + len(header), shape)
    x[n - 1, :, tokens - 1, dims - 1] = 7
    x[0, : math.ceil(layers / 4), 0, 2] = -8
    x[0, 0, tokens // 2] = 9
    x.flush()
    limit = 320 * 2**20
    count = ["-m", "outlier_features.command.main", "count", "--input", path, "--key", "acts"]
    done = process(
        [*count, "--format", "json", "--quiet"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    found = json.loads(done.stdout)["acts"]
    alone = dims if layers == 1 else 0  # a single layer's hits are kept
    assert size > 3 * limit and found["elements_over_threshold"] == layers + math.ceil(layers / 4) + dims
    assert found["locations"] == 2 + alone and found["occurrences"] == layers + math.ceil(layers / 4) + alone
    assert found["quantiles"] == {"q1": 0.0, "median": 0.0, "q3": 0.0, "iqr": 0.0}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threshold", "-1"], ["--threshold", "nan"], ["--threshold", "six"], ["--min-layer-fraction", "1.5"],
        ["--iqr-samples", "-3"], ["--iqr-samples", "some"], ["--format", "xml"], ["--compare-key", "attn_norm"],
        ["--min-layer-fraction", "0.5", "--no-layer-fraction"], ["--unknown"],
    ],
)  # fmt: skip
def test_usage_mistakes(dump, capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(["count", "--input", str(dump), "--key", "attn_norm", *arguments])
    assert ended.value.code == 2


def test_the_input_is_not_overwritten(dump, capsys):
    with pytest.raises(SystemExit):
        main(["count", "--input", str(dump), "--key", "attn_norm", "--output", str(dump)])
    assert main(["count", "--input", str(dump), "--key", "attn_norm"]) == 0


def test_a_process_in_a_pipe(dump):
    done = process(["-m", "outlier_features.command.main", "count", "--input", dump, "--key", "attn_norm"])
    assert "\x1b" not in done.stdout and "│ Mean layer-hit fraction (outliers) │" in done.stdout


def test_a_fault_of_the_program_is_said_to_be_one(tmp_path, capsys):
    """A summary that is whole and yet is none: no reader foresaw it."""
    write_json(tmp_path / "summary.json", {key: {"name": "x"} for key in SUMMARY_KEYS})
    assert main(["show", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert not out and err.startswith("Traceback") and last.startswith("error: KeyError: ")
    assert "a fault of outlier-features" in last and f"torch {torch.__version__}" in last
