"""A second configuration, also a mistaken one, does not cost what the first one left."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from outlier_features.files.digest import sha256_of
from outlier_features.former_outputs import FORMER
from rule_jobs import plans

RUN = "results/tiny/text"
TAKEN = "nothing to make: its inputs are as they were"
TWO = {"sample": {"sequences": 3, "tokens": 24}}


@pytest.fixture(scope="module")
def place(project, tmp_path_factory):
    return project.copy_to(tmp_path_factory.mktemp("second") / "project")


def files_of_run(folder):
    """Files of the first run, with their digests and times."""
    run = sorted(path for path in (folder / RUN).rglob("*") if path.is_file())
    found = [*run, folder / "results/report.html", *sorted((folder / "results/gallery").rglob("*.json"))]
    return {str(path.relative_to(folder)): (sha256_of(path), path.stat().st_mtime) for path in found}


def test_another_sample_is_run_beside_the_first_and_reported_with_it(place):
    [jobs] = plans({place.folder: place.changed(**TWO)})
    made = {path for job in jobs for path in job.snakemake.output}
    assert "results/tiny/text@3x24/dims.parquet" in made and not any(path.startswith(f"{RUN}/") for path in made)
    [report] = [job for job in jobs if job.rule == "render_report"]
    assert [*map(os.path.dirname, report.snakemake.input.tokens)] == [RUN, f"{RUN}@3x24"]
    assert {f"{RUN}/dims.parquet", f"{RUN}@3x24/dims.parquet"} <= {*report.snakemake.input}
    assert "fetch_corpus" not in {job.rule for job in jobs} and "compare_models" in {job.rule for job in jobs}
    [galleries] = [job for job in jobs if job.rule == "list_galleries"]
    assert [path.split("/")[3] for path in galleries.snakemake.input.galleries] == ["text", "text@3x24"]


def own_model(place):
    """`outlier-features run` on the model and text of the first run, as the workflow's catalog and config have them."""
    for name, keys in (
        ("workflow/catalog.yaml", {"models": place.config["catalog"]["models"], "corpora": {}}),
        ("config.yaml", {key: place.config[key] for key in ("extract", "detect")}),
    ):
        path = place.folder / name
        content = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**content, **{key: {**content[key], **new} for key, new in keys.items()}}))
    arguments = ["run", "tiny", "--text", "text.txt", "--sequences", "6", "--tokens", "48", "--cores", "2"]
    return subprocess.run(
        [sys.executable, "-m", "outlier_features.command.main", *arguments], cwd=place.folder, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(place.folder / "workflow")}, check=False,
    )  # fmt: skip


def test_a_broken_tokenizer_costs_no_table_and_once_mended_no_pass(place):
    """The jobs that read it make the same bytes again, and all that come after them take what they had."""
    before, tokenizer = files_of_run(place.folder), place.folder / "llama/tokenizer.json"
    whole = tokenizer.read_text()
    tokenizer.write_text("{}")
    broken = tokenizer.stat().st_mtime
    failed = own_model(place)
    [error] = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert failed.returncode == 1 and re.fullmatch(r"error: rule tokenize_corpus failed: .*tokenizer.*; log: .*", error)
    assert (place.folder / error.rpartition("log: ")[2]).is_file() and "Building DAG" not in failed.stderr
    after = files_of_run(place.folder)
    assert {name: sha for name, (sha, _) in after.items()} == {name: sha for name, (sha, _) in before.items()}
    tokens = {f"{RUN}/tokens.safetensors", f"{RUN}/texts.parquet"}
    assert all(after[name] == before[name] or (name in tokens and after[name][1] == FORMER) for name in before)

    tokenizer.write_text(whole)
    mended = own_model(place)
    assert mended.returncode == 0, mended.stderr
    assert "tiny: 50,208 parameters, fetched before" in mended.stdout and "as before" in mended.stdout
    assert "rules massive and dettmers select" in mended.stdout
    assert mended.stdout.endswith("report: results/report.html\n")
    again = files_of_run(place.folder)
    assert {name: sha for name, (sha, _) in again.items()} == {name: sha for name, (sha, _) in before.items()}
    logs = [path for path in (place.folder / "results/logs").rglob("*.log") if path.stat().st_mtime > broken]
    computed = {
        path.relative_to(place.folder / "results/logs").parts[0] for path in logs if TAKEN not in path.read_text()
    }
    assert "extract_activations/tiny/text/0-3.log" in {"/".join(path.parts[-4:]) for path in logs}
    assert computed == {"fetch_model", "tokenize_corpus"}  # snakemake.log has what all of them say
    assert place.run().nothing_to_do and not (place.folder / "results/.former").exists()
    [overlay] = place.folder.glob("tiny*.yaml")
    assert place.snakemake("--configfile", overlay.name).nothing_to_do
