"""Runs of models for which an analysis truly cannot be had reach their report, which says what is missing and why."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from outlier_features.command.main import main
from outlier_features.run.verify_artifacts import verify_artifacts
from outlier_features.summary.summarize_run import SUMMARY_KEYS

MAMBA = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
CONFIG = {
    "models": ["tiny-mamba"],
    "results": "missing",
    "resources": "missing/resources",
    "catalog__models__tiny-mamba": {"path": "mamba"},
    "sample": {"sequences": 3, "tokens": 32},
    "extract__attention": "eager",
    "skip": ["surface", "channels"],
    "trace_origin__dims": [],
}
WITHOUT = {"attention_maps", "super_weights", "neurons", "gallery"}  # neither attention nor MLPs


@pytest.fixture(scope="module")
def mamba(project):
    """A run of a Mamba, which has neither attention nor MLPs, with the surface turned off; its end by Snakemake."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **MAMBA)).save_pretrained(project.folder / "mamba")
    (project.folder / "mamba/tokenizer.json").write_text((project.folder / "llama/tokenizer.json").read_text())
    project.run_here(**CONFIG)
    project.record(**CONFIG)
    for name in ("report.html", "tiny-mamba/text/summary.json"):
        (project.folder / "missing" / name).unlink()
    return project.run(**CONFIG)


def summary_of(project):
    return json.loads((project.folder / "missing/tiny-mamba/text/summary.json").read_text())


def test_a_run_goes_on_without_what_cannot_be_had(project, mamba):
    assert mamba.status == 0, mamba.output
    summary = summary_of(project)
    assert set(SUMMARY_KEYS) <= summary.keys()
    causes = {analysis: facts["cause"] for analysis, facts in summary["missing"].items()}
    assert causes == {
        "surface": "off",
        "channels": "off",
        "quantization": "off",
        "origin": "off",
        **dict.fromkeys(WITHOUT, "model"),
    }
    for facts in summary["missing"].values():
        assert (project.folder / "missing" / facts["log"]).is_file()
    for line in ("tiny-mamba on text: The map of attention sinks and patterns cannot be had:",
                 "tiny-mamba on text: The search for super weights cannot be had:"):  # fmt: skip
        assert mamba.output.count(line) == 1
    assert "tiny-mamba on text: The surface" not in mamba.output
    folder = project.folder / "missing/tiny-mamba/text"
    for table in ("sinks", "surface", "lifecycle", "super_weights"):
        assert pl.read_parquet(folder / f"{table}.parquet").is_empty()
    assert json.loads((folder / "mask.json").read_text())["super_weights"] is None
    assert summary["loss"]["perplexity"] > 1 and summary["ablation"]["weights_searched"] is False
    assert not [one for one in verify_artifacts([project.folder / "missing"]) if one.found]


def test_the_report_and_the_terminal_say_what_is_missing(project, mamba, capsys):
    report = (project.folder / "missing/report.html").read_text()
    assert main(["show", str(project.folder / "missing")]) == 0
    shown = capsys.readouterr().out
    for text in (report, shown):
        assert "The map of attention sinks and patterns cannot be had: no layer of this model has attention" in text
        assert "The surface of the largest value is turned off: `skip` names surface." in text
        assert "finds no super weight" not in text and "no super weight was found" not in text
    assert 'id="tiny-mamba/text/missing"' in report


def test_a_second_run_does_nothing(project, mamba):
    assert project.run(**CONFIG).nothing_to_do


def test_channels_that_were_not_wanted_need_a_new_pass_once_they_are(project, mamba):
    assert {"extract_activations", "merge_channels"} <= project.planned(**{**CONFIG, "skip": ["surface"]}).jobs()


def test_strict_makes_it_an_error_and_skip_turns_it_off(project, mamba):
    """Neither runs again what is there."""
    planned = project.planned(**CONFIG, strict=True).jobs()
    assert planned == {"summarize_run", "render_report"}
    strict = project.run(**CONFIG, strict=True)
    assert strict.status == 1 and len(strict.errors()) == 1 and "Traceback" not in strict.output
    assert (
        "`skip: [attention_maps, super_weights, neurons, gallery]`" in strict.errors()[0]
        and "surface" not in strict.errors()[0]
    )
    skipping = {**CONFIG, "skip": [*CONFIG["skip"], *sorted(WITHOUT)], "strict": True}
    assert {"map_attention", "ablate_dims"} <= project.planned(**skipping).jobs()
    assert "extract_activations" not in project.planned(**skipping).jobs()
    project.run_here(**skipping)
    assert {facts["cause"] for facts in summary_of(project)["missing"].values()} == {"off"}
    log = Path(project.folder / "missing" / summary_of(project)["missing"]["attention_maps"]["log"]).read_text()
    assert log == "missing: The map of attention sinks and patterns is turned off: `skip` names attention_maps.\n"
