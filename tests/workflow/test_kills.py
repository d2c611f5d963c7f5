"""A short form of `make soak`: what is killed and resumed ends as if nothing had been."""

import shutil

import pytest
import yaml

from outlier_features.run.orphans import can_be_found
from soak import Soak


@pytest.mark.parametrize(
    "ways", [["Snakemake -9"], pytest.param(["a job -9", "Ctrl-C"], marks=pytest.mark.slow)], ids=" and ".join
)
@pytest.mark.skipif(not can_be_found() or not shutil.which("make"), reason="no /proc or no make here")
def test_a_killed_run_is_resumed_to_the_same_results(project, tmp_path, ways):
    folder = tmp_path / "soak"
    aside = shutil.ignore_patterns("results", "resources", "another", "other", "bert", ".snakemake")
    shutil.copytree(project.folder, folder, ignore=aside, symlinks=True)
    (folder / "soak.yaml").write_text(yaml.safe_dump(project.config))
    soak = Soak(folder, project.first / "results", seconds=25.0, seed=2)
    soak.kill(ways)
    assert soak.completed >= 1
