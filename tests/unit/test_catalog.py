"""The shipped catalog and presets: every entry is sound, a configuration adds to it, a gated model needs a token."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from snakemake.utils import update_config

from hub_server import running_hub
from outlier_features.errors import InputError
from outlier_features.run.catalog import read_catalog, with_catalog
from outlier_features.run.config import read_schema, resolve_config
from rule_jobs import plans
from rule_process import run_rules

ROOT = Path(__file__).parents[2]
SCHEMA = read_schema(ROOT / "workflow/schemas/config.schema.yaml")
SHIPPED = read_catalog(ROOT / "workflow/catalog.yaml")
PRESETS = sorted((ROOT / "workflow/presets").glob("*.yaml"))


def resolved(overlay):
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    update_config(config, overlay)
    return resolve_config(with_catalog(config, SHIPPED), SCHEMA)


def test_every_entry_is_sound():
    config = resolved({"models": list(SHIPPED["models"]), "corpora": list(SHIPPED["corpora"])})
    assert config["catalog"]["models"].keys() == SHIPPED["models"].keys()


def test_an_overlay_adds_changes_and_replaces():
    own = {"mine": {"path": "m"}, "gpt2": {"path": "/models/gpt2"}, "qwen3-8b": {"dtype": "float32"}}
    models = [*own, "olmo-1b"]
    found = resolved({"models": models, "catalog": {"models": own}})["catalog"]["models"]
    assert found["mine"] == {"path": "m", "trust_remote_code": False}
    assert found["gpt2"] == {"path": "/models/gpt2", "trust_remote_code": False}  # no hub beside it
    assert (found["qwen3-8b"]["hub"], found["qwen3-8b"]["dtype"]) == ("Qwen/Qwen3-8B", "float32")
    assert found["olmo-1b"]["hub"] == SHIPPED["models"]["olmo-1b"]["hub"]


@pytest.mark.parametrize("catalog", [3, {"models": [1]}, {"models": {"gpt2": 3}}])
def test_what_is_no_catalog_is_refused(catalog):
    with pytest.raises(InputError, match=r"^config: catalog"):
        resolved({"models": ["gpt2"], "catalog": catalog})


def test_presets_are_planned_without_a_network(tmp_path, monkeypatch):
    """Every preset has its figures, and results of its own."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    configs = {}
    for preset in PRESETS:
        folder = tmp_path / preset.stem
        folder.mkdir()
        values = np.zeros((2, 4, 16, 8), np.float32)
        save_file({"attn_norm": values, "mlp_input": values}, folder / "activations.safetensors")
        configs[folder] = yaml.safe_load(preset.read_text())
        assert configs[folder]["results"] == f"results/{preset.stem}"
    for preset, jobs in zip(PRESETS, plans(configs, ["all", "figures"]), strict=True):
        config = resolved(yaml.safe_load(preset.read_text()))
        drawn = {str(path) for job in jobs if job.rule == "draw_figures" for path in job.snakemake.output}
        runs = len(config["models"]) * len(config["corpora"])
        assert len(drawn) == runs and all(path.startswith(f"results/{preset.stem}/") for path in drawn)


def test_a_gated_model_is_not_asked_for_without_a_token(tmp_path):
    with running_hub() as hub:
        hub.model("org/gated", {"config.json": b"{}", "model.safetensors": b"x"}).gated = 401
        sources = {tmp_path / "model": {"hub": "org/gated", "gated": True}}
        [outcome] = run_rules("fetch_model", sources, hub.url, tmp_path / "home")
        assert outcome.error.startswith("error: hub: model 'org/gated' is gated, and there is no token")
        assert f"{hub.url}/org/gated" in outcome.error and "HF_TOKEN" in outcome.error
        assert hub.requests == []
        [outcome] = run_rules("fetch_model", sources, hub.url, tmp_path / "home", HF_TOKEN="hf_none")
        assert "was refused (HTTP 401), it is gated" in outcome.error
        assert hub.requests
