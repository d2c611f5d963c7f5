"""The plan of whole runs, compared with Snakemake's plan, with files that were extracted, and with times that were."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import zoo
from hub_server import running_hub
from outlier_features.command.main import main
from outlier_features.plan.hours import Measured, Work, expected_time, seconds_of_run
from outlier_features.plan.jobs import runs_of
from outlier_features.plan.plan_run import plan_run
from outlier_features.run.config import read_schema, resolve_config
from outlier_features.run.local_models import LocalModels
from outlier_features.status.planned_jobs import jobs_beside, jobs_of
from outlier_features.tokens.tokens import Tokens
from rule_jobs import inside, plans
from test_extract_activations import Run

ROOT = Path(__file__).parents[2]
BASE = yaml.safe_load((ROOT / "config.yaml").read_text())
SCHEMA = read_schema(ROOT / "workflow/schemas/config.schema.yaml")
HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time"


def config_of(folder, **changes):
    """Two models and two texts, in `folder`, five sequences in chunks of two."""
    for name in ("one", "other"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text("{}")
        (folder / f"{name}.txt").touch()
    return {
        "models": ["one", "other"],
        "corpora": ["one", "other"],
        "catalog": {
            "models": {name: {"path": name} for name in ("one", "other")},
            "corpora": {name: {"files": [f"{name}.txt"]} for name in ("one", "other")},
        },
        "sample": {"sequences": 5, "tokens": 24},
        "extract": {"chunk_sequences": 2},
        **changes,
    }


def planned(folder, config):
    with inside(folder):
        return plan_run(resolve_config({**BASE, **config}, SCHEMA))


def benchmark(path, seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEADER}\n{seconds}\t0:00:01\t100\t100\t100\t100\t1\t1\t90\t1\n")


def test_jobs_are_those_of_snakemake(tmp_path):
    folders = [tmp_path / name for name in ("plain", "skip", "without", "dump")]
    for folder in folders:
        folder.mkdir()
    plain, skip, without, dumped = folders
    everything = [
        "surface",
        "norms",
        "origin",
        "experts",
        "attention_maps",
        "loss",
        "super_weights",
        "ablation",
        "knock_outs",
        "neurons",
        "gallery",
    ]
    configs = {
        plain: config_of(plain, ablate={"knock_outs": True}, gallery={"attribution": True}, quantize={"losses": True}),
        skip: config_of(skip, skip=everything, extract={"chunk_sequences": 3, "keep_activations": False}),
        without: config_of(without, extract={"chunk_sequences": 1, "keep_activations": False}, corpora=["one"],
                           models=["one"], rules={"location": False}),
        dumped: config_of(dumped),
    }  # fmt: skip
    save_file({"attn": np.ones((2, 3, 4, 8), np.float32), "g": np.ones((3, 8), np.float32)}, dumped / "d.safetensors")
    entry = {"dump": "d.safetensors", "keys": {"attn_norm": "attn"}, "gains": {"attn_norm": "g"}}
    configs[dumped]["catalog"]["models"]["saved"] = entry
    configs[dumped]["models"].append("saved")
    for (folder, config), jobs in zip(configs.items(), plans(configs), strict=True):
        assert planned(folder, config)["jobs"] == Counter(job.rule for job in jobs), folder.name
        assert files_of_status(folder, config) == {
            (job.rule, Path(job.snakemake.log[0]), frozenset(map(Path, job.snakemake.output)))
            for job in jobs
            if job.rule != "rerun_largest"  # whose file is removed
        }


def files_of_status(folder, config):
    """By rule and log the files that `outlier-features status` looks for."""
    with inside(folder):
        resolved = resolve_config({**BASE, **config}, SCHEMA)
        dumps = LocalModels.of(resolved["catalog"]["models"]).dumps
        jobs = [job for run in runs_of(resolved) for job in jobs_of(resolved, *run, dumps)]
        jobs += jobs_beside(resolved, runs_of(resolved))
    return {(job.rule, job.log, frozenset(job.files)) for job in jobs if job.rule != "rerun_largest"}


@pytest.mark.parametrize("name", ["llama", "mixtral", "olmo2", "qwen3_next", "bert", "gptj", "gemma3_text"])
def test_activations_are_those_of_the_file_that_is_extracted(name, tmp_path):
    sites = ["attn_norm", "mixer_norm", "mlp_norm", "resid_post"]
    run = Run(tmp_path, name)
    file, _ = run.extract(sites=sites)
    arrays = {key: entry for key, entry in file.entries.items() if not key.startswith("gain.")}
    sequences, tokens = run.ids.shape
    (tmp_path / "text.txt").touch()
    config = {
        "models": ["tiny"],
        "corpora": ["text"],
        "sites": sites,
        "catalog": {"models": {"tiny": {"path": "model"}}, "corpora": {"text": {"files": ["text.txt"]}}},
        "sample": {"sequences": sequences, "tokens": tokens},
    }
    found = planned(tmp_path, config)["runs"][0]["activations"]
    stored = sum(entry.nbytes for entry in arrays.values())
    assert stored <= found["bytes"]
    if name in ("llama", "mixtral", "gemma3_text"):  # whose blocks have a norm before attention and one before the MLP
        assert stored == found["bytes"]
    only = planned(tmp_path, {**config, "sites": ["resid_post"], "rules": dict.fromkeys(BASE["rules"], False)})
    only = only["runs"][0]["activations"]
    assert only["exact"]
    assert only["bytes"] == sum(entry.nbytes for key, entry in arrays.items() if key.startswith("resid_post"))


def test_a_dump_is_not_run(tmp_path):
    save_file({"attn": np.ones((2, 3, 4, 8), np.float32)}, tmp_path / "d.safetensors")
    config = {
        "models": ["saved"],
        "catalog": {
            "models": {"saved": {"dump": "d.safetensors", "keys": {"attn_norm": "attn"}}},
            "corpora": {"python-docs": {"stdlib": "pydoc_data.topics"}},
        },
    }
    plan = planned(tmp_path, config)
    [run] = plan["runs"]
    assert (run["sequences"], run["tokens"], run["loads"], plan["loads"]) == (2, 4, 0, 0)
    assert run["activations"]["bytes"] == 2 * 3 * 4 * 8 * 4
    assert plan["models"]["saved"]["bytes_of_files"] == (tmp_path / "d.safetensors").stat().st_size


def test_what_is_in_a_wheel_or_gguf_is_not_known(tmp_path):
    (tmp_path / "a.gguf").touch()
    (tmp_path / "text.txt").touch()
    models = {"wheel": {"pypi": "a==1", "path": "model", "sha256": "0" * 64}, "gguf": {"path": "a.gguf"}}
    corpora = {"text": {"files": ["text.txt"]}}
    plan = planned(
        tmp_path, {"models": [*models], "corpora": ["text"], "catalog": {"models": models, "corpora": corpora}}
    )
    for name in models:
        assert "before it is fetched" in plan["models"][name]["unknown"]
    assert plan["loads"] is None
    assert all(run["activations"].keys() == run["flops"].keys() == {"unknown"} for run in plan["runs"])


def test_of_the_hub_only_the_config_is_fetched(tmp_path):
    zoo.save("llama", tmp_path / "model")
    (tmp_path / "text.txt").touch()
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "models": ["tiny"],
                "corpora": ["text"],
                "catalog": {"models": {"tiny": {"hub": "org/tiny"}}, "corpora": {"text": {"files": ["text.txt"]}}},
            }
        )
    )
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with running_hub() as hub:
        hub.model("org/tiny", files)
        environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "outlier_features.command.main", "plan", "--configfile", "mine.yaml", "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert hub.downloads("config.json")
        assert not hub.downloads("model.safetensors")
    model = json.loads(done.stdout)["models"]["tiny"]
    assert model["bytes_of_files"] == len(files["model.safetensors"])
    assert model["parameters"] == sum(one.numel() for one in zoo.build("llama").parameters())


def test_the_seconds_of_a_run_that_was_killed_are_those_of_all_its_chunks(tmp_path):
    benchmark(tmp_path / "ablate_dims" / "m" / "c.tsv", 7)
    benchmark(tmp_path / "detect_outliers" / "m" / "c" / "00-03.tsv", 8)
    benchmark(tmp_path / "detect_outliers" / "m" / "c" / "08-09.tsv", 4)
    benchmark(tmp_path / "detect_outliers" / "m" / "other" / "0-9.tsv", 100)
    found = seconds_of_run(tmp_path, "m", "c", sequences=10)
    assert found == {"ablate_dims": 7, "detect_outliers": 20}


def test_time_is_in_proportion_to_the_nearest_run():
    small = Measured("small/c", Work(10**9, 10**6), {"extract_activations": 2.0, "detect_outliers": 3.0})
    large = Measured("large/c", Work(10**12, 10**7), {"extract_activations": 100.0, "detect_outliers": 10.0})
    rules = ["extract_activations", "detect_outliers", "ablate_dims"]
    found = expected_time("new/c", Work(2 * 10**12, 3 * 10**7), rules, [small, large])
    assert (found.measured, found.scaled) == ("large/c", True)
    assert found.seconds == {"extract_activations": 200.0, "detect_outliers": 30.0}
    assert found.unknown == ("ablate_dims",)
    again = expected_time("small/c", small.work, rules[:2], [large, small])
    assert (again.measured, again.scaled, again.total) == ("small/c", False, 5.0)
    assert expected_time("new/c", Work(1, 1), rules, []) is None


def test_hours_from_benchmarks_of_a_shorter_run(tmp_path):
    """Twice the sequences take twice as long."""
    run = Run(tmp_path, "llama")
    (tmp_path / "text.txt").touch()
    place = tmp_path / "results" / "tiny" / "text"
    place.mkdir(parents=True)
    shutil.copy(run.tokens, place / "tokens.safetensors")
    sequences, tokens = Tokens.read(run.tokens).tokens.shape
    benchmark(tmp_path / "results/benchmarks/extract_activations/tiny/text/0-4.tsv", 1800)
    benchmark(tmp_path / "results/benchmarks/measure_loss/tiny/text.tsv", 900)
    config = {
        "models": ["tiny"],
        "corpora": ["text"],
        "catalog": {"models": {"tiny": {"path": "model"}}, "corpora": {"text": {"files": ["text.txt"]}}},
        "sample": {"sequences": 2 * sequences, "tokens": tokens},
    }
    expected = planned(tmp_path, config)["runs"][0]["expected"]
    assert expected["hours"] == pytest.approx(1.5)
    assert (expected["measured"], expected["scaled"]) == ("tiny/text", True)
    assert "ablate_dims" in expected["unknown"]


def test_the_command_says_it_in_words_and_as_json(tmp_path, capsys):
    zoo.save("mixtral", tmp_path / "one")
    config = config_of(tmp_path)
    zoo.save("mixtral", tmp_path / "one")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**config, "models": ["one"]}))
    with inside(tmp_path):
        assert main(["plan", "--configfile", "mine.yaml"]) == 0
        text = capsys.readouterr().out
        assert main(["plan", "--configfile", "mine.yaml", "--json", "--output", "plan.json"]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    model = plan["models"]["one"]
    assert f"{model['parameters']:,}" in text
    assert model["active_parameters"] < model["parameters"]
    assert str(plan["loads"]) in text
    assert "not known before a run" in text


def test_a_mistake_in_a_config_is_one_line(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("modles: [a]")
    with inside(tmp_path):
        assert main(["plan", "--configfile", "mine.yaml"]) == 1
    assert capsys.readouterr().err.startswith("error: config: unknown key 'modles'")
