"""A run that evicts weights, as Snakemake sees it: one model after the other, and no reason to run anything again."""

from pathlib import Path

import pytest

from hub_server import running_hub
from outlier_features.files.artifacts import read_json

# All but the activations, their tables and the loss.
SKIPPED = [
    *("surface", "norms", "origin", "experts", "attention_maps", "super_weights", "expert_ablation", "neurons"),
    *("gallery", "channels", "quantization", "ablation"),
]
FILES = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture(scope="module")
def hub(project):
    files = {name: (project.folder / "llama" / name).read_bytes() for name in FILES}
    with running_hub() as hub:
        for name in ("one", "two"):
            hub.model(f"org/{name}", files)
        yield hub


def weights(folder: Path) -> list[Path]:
    return [*folder.glob("resources/models/*/hub/*/*.safetensors")]


def test_evicted_weights_are_no_reason_to_run_again_and_are_fetched_where_a_job_needs_them(project, hub):
    changes = {
        "results": "results-evicted",
        "models": ["one", "two"],
        "catalog__models": {name: {"hub": f"org/{name}"} for name in ("one", "two")},
        "fetch": {"evict": True},
        "skip": SKIPPED,
        "sample": {"sequences": 2, "tokens": 24},
    }
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(project.folder / "home"), "HF_HUB_OFFLINE": "0"}
    environment["OUTLIER_FEATURES_OFFLINE"] = "1"  # of another process, which ran a model: the user's word counts
    project.write(**changes)
    run = project.snakemake("tables", "--configfile", "mine.yaml", env=environment)
    assert run.status == 0, run.output
    size = (project.folder / "llama/model.safetensors").stat().st_size
    results = project.folder / "results-evicted"
    for name in ("one", "two"):
        assert read_json(results / f"evicted/{name}.json")["freed_bytes"] == size
        assert f"freed {size:,} bytes" in (results / f"logs/evict_weights/{name}.log").read_text()
    assert weights(project.folder) == []
    # The second model was fetched when nothing else could be done, the weights of the first being gone.
    order = sorted(["one", "two"], key=lambda name: (results / f"logs/fetch_model/{name}.log").stat().st_mtime)
    first, second = order
    gone = (results / f"evicted/{first}.json").stat().st_mtime
    assert gone < (project.folder / f"resources/models/{second}/source.json").stat().st_mtime
    hub.forget()
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    assert project.snakemake("tables", "--configfile", "mine.yaml", env=offline).nothing_to_do and hub.requests == []
    project.write(**changes | {"fetch": {"evict": False}})
    assert project.snakemake("tables", "--dry-run", "--configfile", "mine.yaml", env=environment).nothing_to_do

    # Another analysis of the same activations: its jobs alone are run, on weights that it has fetched again.
    project.write(**changes | {"skip": SKIPPED[:-1]}, ablate={"seeds": 1})
    first = "results-evicted/evicted/one.json"
    planned = project.snakemake(first, "--dry-run", "--nocolor", "--configfile", "mine.yaml", env=environment)
    assert planned.jobs() == {"ablate_dims", "prune_experts", "quantize_sites", "evict_weights"}
    run = project.snakemake(first, "--configfile", "mine.yaml", env=environment)
    assert run.status == 0, run.output
    assert len(hub.downloads("model.safetensors")) == 1 and weights(project.folder) == []
    assert read_json(project.folder / first)["freed_bytes"] == size
