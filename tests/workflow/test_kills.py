"""A short form of `make soak`: what is killed and resumed ends as if nothing had been."""

import shutil

import pytest
import yaml

from outlier_features.run.orphans import can_be_found
from soak import Soak

# What is made last, of which the short form leaves no more to do.
LAST = ("attention.safetensors", "sinks.parquet", "norms.parquet", "gains.parquet", "surface.parquet", "summary.json")


@pytest.mark.parametrize(
    ("ways", "made"),
    [(["Snakemake -9"], True), pytest.param(["a job -9", "Ctrl-C"], False, marks=pytest.mark.slow)],
)
@pytest.mark.skipif(not can_be_found() or not shutil.which("make"), reason="no /proc or no make here")
def test_a_killed_run_is_resumed_to_the_same_results(project, tmp_path, ways, made):
    folder = tmp_path / "soak"
    aside = shutil.ignore_patterns("results", "resources", "another", "other", "bert", ".snakemake")
    shutil.copytree(project.folder, folder, ignore=aside, symlinks=True)
    (folder / "soak.yaml").write_text(yaml.safe_dump(project.config))
    if made:
        for name in ("results", "resources"):
            shutil.copytree(project.first / name, folder / name)
        for path in (folder / "results/report.html", *(folder / "results/tiny/text" / name for name in LAST)):
            path.unlink()
    soak = Soak(folder, project.first / "results", seconds=6.0 if made else 25.0, seed=2)
    soak.kill(ways)
    assert soak.completed >= 1
