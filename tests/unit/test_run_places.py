"""Runs of different settings never share a directory, and a run finds its own again."""

import copy
import hashlib
import os
import shutil

import pytest

from outlier_features.errors import InputError
from outlier_features.files.artifacts import read_json, write_json
from outlier_features.former_outputs import FORMER, FormerJob, keep_outputs, put_back, take_outputs
from outlier_features.plan.jobs import jobs_beside, runs_of
from outlier_features.run.run_places import RECORD, earlier_runs, with_places, write_record

SAMPLE = {"sequences": 16, "tokens": 256, "pack": "windows", "bos": "auto"}
CONFIG = {
    "run": "",
    "models": ["one"],
    "corpora": ["text"],
    "extract": {"dtype": "float32"},
    "catalog": {
        "models": {"one": {"path": "a"}},
        "corpora": {"text": {"files": ["t.txt"], "sample": SAMPLE}},
    },
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    return {**copy.deepcopy(CONFIG), "results": str(tmp_path / "results")}


def changed(config, *, sample=(), source=None, **keys):
    new = {**copy.deepcopy(config), **keys}
    new["catalog"]["corpora"]["text"]["sample"] |= dict(sample)
    if source:
        new["catalog"]["models"]["one"] = source
    return new


def run_it(config, made=True):
    """What Snakemake does when it begins, and of a run that succeeds what it leaves."""
    found = with_places(config)
    [(model, label)] = runs_of(found)
    place = f"{config['results']}/{model}/{label}"
    write_record(found, (model, label), {"tokens": f"{place}/tokens.safetensors"}, "resources/models/one/source.json")
    if made:
        write_json(f"{place}/tokens.safetensors", {})
    return label


OTHERS = {
    "text@48x256": {"sample": {"sequences": 48}},
    "text@documents": {"sample": {"pack": "documents"}},
    "text@8x256-bos-never-bfloat16": {"sample": {"sequences": 8, "bos": "never"}, "extract": {"dtype": "bfloat16"}},
    "text@bfloat16": {"source": {"path": "a", "dtype": "bfloat16"}},
    "text@long": {"run": "long"},
}


def test_each_configuration_has_a_directory_and_finds_it_again(config):
    assert run_it(config) == "text"
    wanted = {label: changed(config, **keys) for label, keys in OTHERS.items()}
    assert {label: run_it(one) for label, one in wanted.items()} == {label: label for label in wanted}
    assert run_it(config) == "text" and [run_it(one) for one in wanted.values()] == [*wanted]
    other_source = run_it(changed(config, source={"path": "b"}))
    assert other_source.startswith("text@") and other_source not in wanted
    assert run_it(changed(config, source={"path": "c"})) not in {other_source, *wanted, "text"}
    # What only says how a model is loaded or which rules are applied is no other run.
    assert run_it(changed(config, source={"path": "a", "attention": "eager"}, rules={"another": {}})) == "text"


def test_a_run_that_left_nothing_holds_no_directory(config):
    assert run_it(changed(config, sample={"sequences": 100_000}), made=False) == "text"
    assert run_it(config) == "text"
    assert run_it(changed(config, sample={"sequences": 100_000}), made=False) == "text@100000x256"


def test_a_run_that_moved_up_is_found_where_it_lies(config, tmp_path):
    run_it(config)
    run_it(changed(config, sample={"sequences": 48}))
    shutil.rmtree(tmp_path / "results/one/text")
    assert run_it(changed(config, sample={"sequences": 48})) == "text@48x256"
    assert run_it(config) == "text"


def test_a_name_is_of_one_run(config):
    run_it(changed(config, run="mine"))
    with pytest.raises(InputError, match=r"run is 'mine', but the run in .*text@mine has other settings \(16x256\)"):
        with_places(changed(config, run="mine", sample={"sequences": 8}))


def test_labels_are_of_one_corpus_that_is_fetched_once(config):
    run_it(config)
    found = with_places(changed(config, sample={"sequences": 48}))
    assert found["catalog"]["corpora"]["text@48x256"]["sample"]["sequences"] == 48
    jobs = jobs_beside({**found, "fetch": {"evict": False}, "skip": [], "rules": {}})
    assert jobs["fetch_corpus"] == 1


def test_other_runs_are_reported_while_they_are_whole(config, tmp_path):
    run_it(config)
    run_it(changed(config, sample={"sequences": 48}))
    results = tmp_path / "results"
    found = earlier_runs(results, frozenset({("one", "text")}))
    assert found[("one", "text@48x256")]["files"] == {"tokens": str(results / "one/text@48x256/tokens.safetensors")}
    assert len(found) == 1 and len(earlier_runs(results, frozenset())) == 2
    (results / "one/text@48x256/tokens.safetensors").unlink()
    assert not earlier_runs(results, frozenset({("one", "text")}))
    record = results / "one/text" / RECORD
    write_json(record, {**read_json(record), "package_version": "0.0.1"})
    assert not earlier_runs(results, frozenset())


def former_job(folder, *outputs, checksums=None, is_kept=True, name="job"):
    return FormerJob(
        folder / f"logs/{name}.log", folder / f"{name}.tsv", [folder / one for one in outputs], checksums, is_kept
    )


def test_what_was_there_is_put_back_where_nothing_took_its_place(tmp_path):
    for name in ("run/lost.parquet", "run/new.parquet", "run/figures/one.html", "run/large.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("former")
    small = [f"run/{name}" for name in ("lost.parquet", "new.parquet", "figures", "never.parquet")]
    keep_outputs(tmp_path, [former_job(tmp_path, *small), former_job(tmp_path, "run/large.safetensors", is_kept=False)])
    for name in ("lost.parquet", "new.parquet", "large.safetensors"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run/figures")
    (tmp_path / "run/new.parquet").write_text("successor")
    keep_outputs(tmp_path, [])  # another run begins after this one was killed
    assert put_back(tmp_path) == [tmp_path / "run/figures", tmp_path / "run/lost.parquet"]
    found = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    assert {name: path.read_text() for name, path in found.items()} == {
        "run/lost.parquet": "former", "run/new.parquet": "successor", "run/figures/one.html": "former"
    }  # fmt: skip
    assert found["run/lost.parquet"].stat().st_mtime == FORMER != found["run/new.parquet"].stat().st_mtime


SAME, OTHER = "input", "another input"


@pytest.fixture
def made(tmp_path):
    """A job's output and benchmark, and its two inputs: one that is hashed and one that is not, since it is large."""
    for name, text in (("hashed", SAME), ("large", SAME), ("out", "made"), ("job.tsv", "100 s")):
        (tmp_path / name).write_text(text)
    for name in ("hashed", "large"):
        os.utime(tmp_path / name, (1e9, 1e9))
    sums = {str(tmp_path / "hashed"): hashlib.sha256(SAME.encode()).hexdigest(), str(tmp_path / "large"): None}
    keep_outputs(tmp_path, [former_job(tmp_path, "out", checksums=sums, is_kept=False)])
    (tmp_path / "out").unlink()
    return tmp_path


def test_a_job_whose_inputs_are_as_they_were_takes_its_outputs(made):
    (made / "hashed").unlink()
    (made / "hashed").write_text(SAME)  # made again, with the same bytes
    assert take_outputs(made, made / "logs/job.log")
    (made / "job.tsv").write_text("1 s")
    assert put_back(made) == [] and (made / "out").read_text() == "made"
    assert (made / "job.tsv").read_text() == "100 s" and not (made / ".former").exists()


@pytest.mark.parametrize("name", ["hashed", "large"])
def test_another_input_has_it_made_anew(made, name):
    """Of the large one the same bytes in another file are not enough: nobody knows that they are."""
    (made / name).replace(made / "kept")
    (made / name).write_text(OTHER if name == "hashed" else SAME)
    assert not take_outputs(made, made / "logs/job.log")
    assert put_back(made) == []  # what is large was let go


@pytest.mark.parametrize("name", ["hashed", "large"])
@pytest.mark.parametrize("text", [OTHER, SAME.upper()])
def test_another_file_of_the_same_inode_is_another_input(made, name, text):
    """A file system gives a new file the inode of one that was removed."""
    inode = (made / name).stat().st_ino
    (made / name).write_text(text)
    assert (made / name).stat().st_ino == inode
    assert not take_outputs(made, made / "logs/job.log")


def test_other_parameters_have_it_made_anew(made):
    keep_outputs(made, [former_job(made, "out", checksums=None)])
    assert not take_outputs(made, made / "logs/job.log")
    assert not take_outputs(None, made / "logs/job.log")


def test_a_large_input_that_is_newer_than_the_output_is_not_the_one_it_was_made_from(tmp_path):
    for name in ("out", "large", "job.tsv"):
        (tmp_path / name).write_text(SAME)
    os.utime(tmp_path / "out", (1e9, 1e9))
    keep_outputs(tmp_path, [former_job(tmp_path, "out", checksums={str(tmp_path / "large"): None})])
    assert not take_outputs(tmp_path, tmp_path / "logs/job.log")
