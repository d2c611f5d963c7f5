"""The workflow used from elsewhere: as a module of another, as snakedeploy deploys it, installed without a checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from soak import ROOT, copy_project
from tiny_project import Run, tiny_llama

CONFIG = {
    "models": ["tiny"],
    "corpora": ["text"],
    "results": "out",
    "sample": {"sequences": 3, "tokens": 16},
    "catalog": {"models": {"tiny": {"path": "llama"}}, "corpora": {"text": {"files": ["text.txt"]}}},
}
# As `snakedeploy deploy-workflow https://github.com/somebody/outlier-features . --tag v1` writes it.
DEPLOYED = """
configfile: "config/config.yaml"

module outlier_features:
    snakefile:
        github("somebody/outlier-features", path="workflow/Snakefile", tag="v1")
    config:
        config

use rule * from outlier_features
"""
RENAMED = """
import json
from pathlib import Path

configfile: "config.yaml"

module outliers:
    snakefile: {snakefile!r}
    config: config["outliers"]

use rule * from outliers as outliers_*

Path("patterns.json").write_text(json.dumps(outliers.output_patterns()))

rule measure:
    input: rules.outliers_render_report.output.report
    output: "size.txt"
    shell: "wc -c {{input}} > {{output}}"
"""


@pytest.fixture
def place(tmp_path):
    """A directory with a model and a text, and nothing of the workflow."""
    folder = tmp_path / "elsewhere"
    (folder / "llama").mkdir(parents=True)
    tiny_llama(folder / "llama")
    (folder / "text.txt").write_text("a lazy dog, dozing\n" * 20)
    return folder


def snakemake(folder: Path, *arguments: str, python: str = sys.executable, **environment: str) -> Run:
    command = [python, "-m", "snakemake", "--cores", "2", "--nocolor", *arguments]
    found = {**os.environ, "PYTHONPATH": str(ROOT / "workflow")} | environment
    done = subprocess.run(command, cwd=folder, env=found, capture_output=True, text=True, check=False)
    return Run(done.returncode, done.stdout + done.stderr)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments], cwd=folder, check=True)


def test_a_module_whose_rules_have_other_names(place):
    (place / "Snakefile").write_text(RENAMED.format(snakefile=str(ROOT / "workflow/Snakefile")))
    (place / "config.yaml").write_text(yaml.safe_dump({"outliers": CONFIG}))
    planned = snakemake(place, "--dry-run")  # the module's default target
    assert planned.status == 0, planned.output
    jobs = planned.jobs()
    assert {"outliers_all", "outliers_fetch_model", "outliers_ablate_dims", "outliers_render_report"} <= jobs
    assert all(name.startswith("outliers_") for name in jobs)
    # What jobs took is looked up under the rules' own names, and of no rule of the other workflow.
    patterns = json.loads((place / "patterns.json").read_text())
    assert patterns["write_mask"] == ["out/*/*/mask.json"] and "measure" not in patterns
    assert not any(name.startswith("outliers_") for name in patterns)
    planned = snakemake(place, "--dry-run", "measure")
    assert planned.jobs() - jobs == {"measure"} and "outliers_render_report" in planned.jobs()
    # Files are parameters, too, which a prefix does not reach.
    text = (place / "Snakefile").read_text()
    (place / "Snakefile").write_text(text.replace("    config:", '    prefix: "x"\n    config:'))
    [error] = snakemake(place, "--dry-run").errors()
    assert "prefix" in error and "results" in error


def test_what_snakedeploy_deploys(place, tmp_path):
    repository = tmp_path / "hosts/somebody/outlier-features"
    repository.mkdir(parents=True)
    copy_project(repository)
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"], ["tag", "v1"]):
        git(repository, *command)
    (place / "workflow").mkdir()
    (place / "workflow/Snakefile").write_text(DEPLOYED)
    shutil.copytree(ROOT / "config", place / "config")  # as snakedeploy copies it
    (place / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    hosted = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{(tmp_path / 'hosts').as_uri()}/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    # Scripts come from the repository, all else from the installed package.
    tokens = "out/tiny/text/tokens.safetensors"
    run = snakemake(place, tokens, "--configfile", "mine.yaml", **hosted)
    assert run.status == 0 and (place / tokens).is_file(), run.output
    (repository / "scripts/write_mask.py").write_text("# of another version\n")
    git(repository, "commit", "-qam", "new")
    git(repository, "tag", "v2")
    (place / "workflow/Snakefile").write_text(DEPLOYED.replace('"v1"', '"v2"'))
    [error] = snakemake(place, "--dry-run", "--configfile", "mine.yaml", **hosted).errors()
    assert "another version" in error and "write_mask.py" in error


@pytest.mark.slow
@pytest.mark.network
def test_a_wheel_runs_without_a_checkout(place, tmp_path):
    """Built from the sdist; its backend is fetched from the package index."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "builder"], check=True)
    subprocess.run([tmp_path / "builder/bin/pip", "--quiet", "install", "hatchling"], check=True)
    build = [tmp_path / "builder/bin/python", "-m", "hatchling", "build"]
    subprocess.run([*build, "-t", "sdist", "-d", tmp_path / "dist"], cwd=ROOT, check=True, capture_output=True)
    [archive] = (tmp_path / "dist").glob("*.tar.gz")
    shutil.unpack_archive(archive, source, filter="data")
    subprocess.run([*build, "-t", "wheel", "-d", tmp_path / "dist"], cwd=next(source.iterdir()), check=True)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    installed = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    for folder in ("rules", "scripts", "workflow", "profiles"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert files
        for path in files:
            name = path.relative_to(ROOT)
            assert {Path("outlier_features/project") / name, Path(*name.parts[1:])} & installed, name
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "fresh"], check=True)
    packages = next((tmp_path / "fresh/lib").glob("python*")) / "site-packages"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", packages, wheel], check=True)
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    python, project = str(tmp_path / "fresh/bin/python"), packages / "outlier_features/project"
    (place / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    command = [python, "-m", "outlier_features.command.main", "plan", "--configfile", "mine.yaml"]
    subprocess.run(command, cwd=place, env={**os.environ, "PYTHONPATH": ""}, check=True)
    options = ["--snakefile", str(project / "Snakefile"), "--configfile", "mine.yaml"]
    run = snakemake(place, *options, "--", "out/tiny/text/dims.parquet", python=python, PYTHONPATH="")
    assert run.status == 0 and (place / "out/tiny/text/dims.parquet").is_file(), run.output
    assert snakemake(place, *options, "--dry-run", python=python, PYTHONPATH="").status == 0
