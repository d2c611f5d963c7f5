"""A second configuration, also a mistaken one, does not cost what the first one left."""

import json
import shutil
from dataclasses import replace

import pytest

from outlier_features.files.digest import sha256_of
from outlier_features.run.former_outputs import FORMER
from rule_jobs import plans

RUN = "results/tiny/text"
TWO = {"sample": {"sequences": 3, "tokens": 24}}


@pytest.fixture(scope="module")
def place(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("second") / "project"
    shutil.copytree(project.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("another", "missing", "w"))
    for path in (folder / ".snakemake/metadata").iterdir():
        path.write_text(path.read_text().replace(str(project.folder), str(folder)))
    return replace(project, folder=folder)


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
    assert report.snakemake.params.runs == [RUN, f"{RUN}@3x24"]
    assert {f"{RUN}/dims.parquet", f"{RUN}@3x24/dims.parquet"} <= {*report.snakemake.input}
    assert "fetch_corpus" not in {job.rule for job in jobs} and "compare_models" in {job.rule for job in jobs}
    [galleries] = [job for job in jobs if job.rule == "list_galleries"]
    assert [path.split("/")[3] for path in galleries.snakemake.input.galleries] == ["text", "text@3x24"]


def test_a_text_that_cannot_be_run_costs_no_table_and_once_mended_no_pass(place):
    """Both jobs that read the text are made again, with the same bytes, and nothing that comes after them."""
    before, text = files_of_run(place.folder), place.folder / "text.txt"
    tokens = f"{RUN}/tokens.safetensors"
    words = text.read_text()
    text.write_text("\n")
    failed = place.run()
    assert failed.status == 1
    after = files_of_run(place.folder)
    assert {name: sha for name, (sha, _) in after.items()} == {name: sha for name, (sha, _) in before.items()}
    assert {name for name in after if after[name] != before[name]} <= {tokens, f"{RUN}/texts.parquet"}
    assert after[tokens][1] in (FORMER, before[tokens][1])
    text.write_text(words)
    mended = place.run()
    assert mended.status == 0, mended.output
    logs = place.folder / "results/logs"
    newest = max(logs.rglob("*.log"), key=lambda path: path.stat().st_mtime)
    assert newest.parts[-3:] == ("tokenize_corpus", "tiny", "text.log")
    assert {name: sha for name, (sha, _) in files_of_run(place.folder).items()} == {
        name: sha for name, (sha, _) in before.items()
    }
    assert place.run().nothing_to_do and not (place.folder / "results/.former").exists()
    assert json.loads((place.folder / RUN / "run.json").read_text())["settings"]["sample"]["sequences"] == 6
