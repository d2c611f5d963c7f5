"""A rule of one's own: a variant by five lines of the config, and a kind that another package brings."""

import json
import os

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from outlier_features.rules.kinds import kinds

POSITIVE = 0.002
MINE = {"kind": "systematic", "sites": ["mlp_act"], "threshold": 0.05, "layer_share": 0.1, "position_share": 0}
KIND = '''
"""Kind `one_sided`: values of one sign over a threshold."""

from dataclasses import dataclass

import polars as pl

from outlier_features.rules.rule import POSITIVE, SITE, HitRule, parameter


@dataclass(frozen=True, kw_only=True)
class OneSided(HitRule):
    """Values above a threshold, whatever is below its negative."""

    site: str = parameter("Site.", SITE)
    threshold: float = parameter("x at least.", POSITIVE)

    kind = "one_sided"
    noun = "positive giant"
    source = "nobody"

    @property
    def sites(self):
        return (self.site,)

    @property
    def counts_suffice(self):
        return False

    def is_hit(self, threshold):
        return pl.col("value") >= threshold

    def criteria(self):
        return f"x >= {self.threshold:g}"

    def meaning(self):
        return f"{self.titled()}: x >= {self.threshold:g} on {self.site}."
'''


@pytest.fixture(scope="module")
def own(project):
    """The project with both rules, run to the report and the mask."""
    package = project.folder / "brought"
    (package / "giants-1.0.dist-info").mkdir(parents=True)
    (package / "giants.py").write_text(KIND)
    (package / "giants-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: giants\nVersion: 1.0\n")
    (package / "giants-1.0.dist-info/entry_points.txt").write_text(
        "[outlier_features.rules]\none_sided = giants:OneSided\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package)
        patch.setenv("PYTHONPATH", f"{package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")  # of what plans the jobs
        kinds.cache_clear()
        project.run_here(
            results="results-own",
            rules={"mine": MINE, "giants": {"kind": "one_sided", "site": "mlp_out", "threshold": POSITIVE}},
        )
    kinds.cache_clear()
    return project.folder / "results-own/tiny/text"


def activations(run, site):
    """float32 (N, L, T, H) of a site."""
    chunks = [load_file(path) for path in sorted((run / "activations").glob("*.safetensors"))]
    layers = sorted(int(key.split(".")[1]) for key in chunks[0] if key.startswith(f"{site}."))
    return np.concatenate([np.stack([chunk[f"{site}.{layer}"] for layer in layers], axis=1) for chunk in chunks])


def test_hits_are_those_of_brute_force(own):
    pairs = pl.read_parquet(own / "pairs.parquet").filter(population="all")
    for name, site, hit in (
        ("mine", "mlp_act", lambda x: np.abs(x) >= np.float32(0.05)),
        ("giants", "mlp_out", lambda x: x >= np.float32(POSITIVE)),
    ):
        found = pairs.filter(rule=name).select("sequence", "dim", "occurrences", "blocks", "union").rows()
        x = hit(activations(own, site))
        counts, blocks, union = x.sum(axis=(1, 2)), x.any(axis=2).mean(axis=1), x.any(axis=1).mean(axis=1)
        expected = [(n, h, counts[n, h], blocks[n, h], union[n, h]) for n, h in np.argwhere(counts)]
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(np.array(sorted(found), float), np.array(expected, float))


@pytest.mark.parametrize("name", ["mine", "giants"])
def test_the_rule_is_in_every_table_the_mask_and_the_report(own, name):
    dims = pl.read_parquet(own / "dims.parquet").filter(rule=name)
    selected = sorted(set(dims.filter("selected", population="all")["dim"]))
    assert selected
    masks = [one for one in json.loads((own / "mask.json").read_text())["masks"] if one["rule"] == name]
    assert sorted(row["dim"] for row in masks[0]["dims"]) == selected
    assert masks[0]["basis"] == {"mine": "mlp", "giants": "residual"}[name]
    assert name in set(pl.read_parquet(own / "positions.parquet")["rule"])
    summary = json.loads((own / "summary.json").read_text())
    assert summary["populations"]["all"]["rules"][name]["dims_selected"] == len(selected)
    report = (own.parents[1] / "report.html").read_text()
    assert f"Rule {name}" in report
    assert (name in set(pl.read_parquet(own / "sensitivity.parquet")["rule"])) == (name == "mine")


def test_a_dim_of_the_residual_stream_is_followed(own):
    selected = set(pl.read_parquet(own / "dims.parquet").filter("selected", rule="giants")["dim"])
    for table in ("gains", "emergence"):
        assert selected <= set(pl.read_parquet(own / f"{table}.parquet")["dim"])


def test_an_unknown_kind_is_a_mistake_in_the_config(project):
    run = project.run("--dry-run", rules={"mine": {"kind": "one_side", "site": "mlp_out"}})
    assert run.errors()[0].startswith("config: rules.mine.kind is 'one_side', expected one of ")
