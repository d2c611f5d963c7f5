"""Real models from wheels reach a report with nothing but their names in the config."""

import json

import pytest
import yaml

ENCODERS = {"minilm-l6", "all-mpnet-base-v2"}


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("model", ["smollm2-135m", "gemma3-270m", "minilm-l6", "all-mpnet-base-v2"])
def test_a_model_of_the_catalog_reaches_its_report(project, model):
    sample = {"sequences": 2, "tokens": 64}
    overlay = {"models": [model], "results": f"real/{model}", "sample": sample}
    (project.folder / "real.yaml").write_text(yaml.safe_dump(overlay))
    run = project.snakemake("--configfile", "real.yaml")
    assert run.status == 0, run.output
    folder = project.folder / f"real/{model}"
    assert (folder / "report.html").is_file()
    summary = json.loads((folder / model / "python-docs/summary.json").read_text())
    assert {"resid_post", "mlp_norm"} <= set(summary["sites"]["present"])
    without = {"loss", "ablation"} if model in ENCODERS else set()
    assert {name for name, facts in summary["missing"].items() if facts["cause"] == "fault"} == set()
    assert without <= summary["missing"].keys() <= without | {"experts", "super_weights", "origin"}
    if model == "gemma3-270m":
        assert summary["sites"]["dense"]["attn_norm"]["share"] > 0.02
