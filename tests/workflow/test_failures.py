"""A run of several models of which some cannot be had: the others reach their comparison and report, which say why."""

from dataclasses import replace

import polars as pl
import pytest

from outlier_features.run.verify_artifacts import verify_artifacts

MODELS = ("gone", "tiny", "strange", "cut")  # of which tiny alone can be had


@pytest.fixture(scope="module")
def place(project, tmp_path_factory):
    """The project after a run of `tiny`, copied, with models that are no models."""
    copy = project.copy_to(tmp_path_factory.mktemp("failures") / "project")
    (copy.folder / "strange").mkdir()
    (copy.folder / "strange/config.json").write_text('{"model_type": "strange"}')
    (copy.folder / "cut.safetensors").write_bytes(b"\x09")
    catalog = {
        **project.config["catalog"]["models"],
        **{name: {"path": name} for name in ("gone", "strange")},
        "cut": {"dump": "cut.safetensors", "keys": {"attn_norm": "attn"}},
    }
    return replace(copy, config=copy.changed(models=[*MODELS], catalog__models=catalog))


@pytest.fixture(scope="module")
def first(place):
    return place.run()


def failures(place):
    rows = pl.read_parquet(place.folder / "results/comparison/failures.parquet").sort("run")
    return {row["run"]: row for row in rows.iter_rows(named=True)}


def test_the_others_are_compared_and_the_report_says_why(place, first):
    assert first.status == 1 and "Traceback" not in first.output
    said = [line for line in first.output.splitlines() if line.startswith("3 of 4 runs failed: ")]
    assert len(said) == 1 and "cut/dump, gone/text, strange/text;" in said[0] and "results/report.html" in said[0]
    found = failures(place)
    assert {run: row["rule"] for run, row in found.items()} == dict.fromkeys(
        ("cut/dump", "gone/text", "strange/text"), "fetch_model"
    )
    report = (place.folder / "results/report.html").read_text()
    assert "1 run compared, 3 failed" in report
    for run, words in (("cut/dump", "cut.safetensors"), ("gone/text", "is not a directory"), ("strange/text", "weigh")):
        row = found[run]
        assert words in row["reason"] and f"rule fetch_model failed: {row['reason']}; log: {row['log']}" in first.output
        assert row["reason"] in (place.folder / row["log"]).read_text() and row["log"] in report
    assert set(pl.read_parquet(place.folder / "results/comparison/models.parquet")["run"]) == {"tiny/text"}
    assert not [one for one in verify_artifacts([place.folder / "results"]) if one.found]
    assert not (place.folder / "results/failed.json").exists() and not (place.folder / ".snakemake/locks").exists()


def test_another_run_tries_them_again_and_replaces_their_rows(place, first):
    (place.folder / "gone").mkdir()
    again = place.run("tables", "--forcerun", "compare_runs")
    assert again.status == 1
    found = failures(place)
    assert "has no config.json" in found["gone/text"]["reason"] and len(found) == 3
    place.write(models=["tiny"])
    alone = place.snakemake("tables", "--configfile", "mine.yaml")
    assert alone.nothing_to_do  # of `tiny`, nothing was touched


def test_what_ended_the_run_is_no_failure_of_a_model(place, first):
    """Without `keep-going`, as of Snakemake itself, the first failure ends it: nobody knows what of the others."""
    before = failures(place)
    run = place.run("tables", "--workflow-profile", "none")
    assert run.status == 1 and "runs failed" not in run.output and failures(place) == before
