"""The report's first words: what stands out, from computed values only."""

import polars as pl
import pytest

from fake_run import FakeRun
from outlier_features.files.artifacts import read_json
from outlier_features.summary.facts import facts_in
from outlier_features.summary.in_short import MAX_PROFILES, in_short
from outlier_features.wording import number


def short(tmp_path, **changes):
    run = FakeRun(**changes).write(tmp_path / "run")
    summary = read_json(run / "summary.json")
    names = ("lifecycle", "origin", "origin_neurons")
    tables = {name: pl.read_parquet(run / f"{name}.parquet") for name in names if (run / f"{name}.parquet").exists()}
    return summary, in_short(summary, facts_in(summary, tables))


def test_the_largest_dims_come_with_what_every_rule_found(tmp_path):
    summary, told = short(tmp_path)
    dims = pl.read_parquet(tmp_path / "run/dims.parquet").filter("selected")
    assert [profile.dim for profile in told.profiles] == [7, 5]
    massive, outlier = told.profiles
    assert (massive.what, outlier.what) == ("massive activations", "massive activations and an outlier feature")
    largest = pl.read_parquet(tmp_path / "run/massive.parquet").sort(pl.col("value").abs()).row(-1, named=True)
    start = f"Its largest massive activation is {number(largest['value'])} in layer {largest['layer']}, "
    start += f"{number(largest['ratio'])} times"
    assert massive.facts[0].short.startswith(start)
    assert "Without first tokens the rule does not select it." in massive.facts[0].short
    assert massive.facts[0].where == "resid_post; rule massive; over all tokens"
    row = dims.filter(dim=5, rule="dettmers", population="all").row(0, named=True)
    assert f"{row['sequences_passing']} of {summary['corpus']['sequences']} sequences pass" in outlier.facts[1].short
    assert f"The largest |x| of its hits is {number(row['max_abs'])}." in outlier.facts[1].short
    assert "does not select" not in outlier.facts[1].short  # it is selected in both populations
    assert "2 dimensions of 64" in told.answer[0] and "7 and 5" in told.answer[0]
    assert told.answer[1].endswith("0 dimensions by massive and 1 dimension by dettmers.")


def test_an_ablation_is_told_by_the_target_that_does_most(tmp_path):
    _, told = short(tmp_path)
    rows = pl.read_parquet(tmp_path / "run/ablation.parquet")
    zeros = rows.filter(target="dims", dims="7", value="zero")
    (fact,) = [fact for fact in told.profiles[0].facts if fact.short.startswith("Perplexity")]
    base, worst = rows["perplexity"][0], zeros["perplexity"].max()
    assert f"from {number(base)} to {number(worst)} (" in fact.short and "when set to zero" in fact.short


def test_where_nothing_is_found_that_is_the_answer(tmp_path):
    _, told = short(tmp_path, outliers=(), massive=(), hits=())
    assert told.profiles == () and told.more == 0
    assert told.answer[0].endswith("rules massive and dettmers select no dimension of 64, in any population.")
    assert len(told.answer) == 1


@pytest.mark.parametrize(("sites", "rule"), [(("resid_post",), "massive"), (("attn_norm", "mlp_norm"), "dettmers")])
def test_a_rule_that_was_not_applied_is_not_named(tmp_path, sites, rule):
    _, told = short(tmp_path, sites=sites)
    assert f"rule {rule} selects" in told.answer[0]
    assert all(fact.where.split("; ")[1] in (f"rule {rule}", "rule trace_origin") or "layer" in fact.where
               for profile in told.profiles for fact in profile.facts)  # fmt: skip


def test_many_dims_are_cut_and_counted(tmp_path):
    _, told = short(tmp_path, outliers=tuple(range(20)))
    assert len(told.profiles) == MAX_PROFILES
    assert told.more + MAX_PROFILES == len({*range(20), 7})
    assert "more." in told.answer[0]
