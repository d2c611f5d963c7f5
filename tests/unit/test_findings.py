"""The sentence of each figure says of its run what the tables hold, with no outlier dim, one and hundreds."""

import re

import polars as pl
import pytest

from fake_run import FakeRun
from outlier_features.figures.run_figures import run_figures
from outlier_features.summary.report_run import Run
from outlier_features.wording import in_words, number, percent

FAKES = {
    "none": FakeRun(outliers=(), massive=(), hits=()),
    "one": FakeRun(outliers=(5,), massive=(5,), hits=()),
    "hundreds": FakeRun(outliers=tuple(range(400)), massive=tuple(range(400))),
    "experts": FakeRun(experts=4, knock_outs=True),
}
# What is drawn of a run in which nothing stands out, or of the model alone, without a sentence about dims.
WITHOUT = {"norm-gains"}
UNDER_WORDS = {"first-screen"}  # the page begins with its sentence


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return {name: Run.read(fake.write(folder / f"{name}/text")) for name, fake in FAKES.items()}


@pytest.fixture(scope="module")
def findings(runs):
    return {name: {drawing.name: drawing for drawing in run_figures(run)} for name, run in runs.items()}


@pytest.mark.parametrize("name", FAKES)
def test_each_figure_says_something_short(findings, name):
    for drawing in findings[name].values():
        said = drawing.finding
        expected = bool(drawing.views) and drawing.name not in UNDER_WORDS
        assert bool(said) == expected or (drawing.name in WITHOUT and name == "none"), drawing.name
        assert len(said.split()) <= 40, said
        assert not re.search(
            r"population|None|nan|–|\b1 (dims|dimensions|positions|sequences|layers|values)\b", said
        ), said
        assert not said or (said[0].isupper() or said.startswith("kurtosis_")), said
        assert not said or (said.endswith(".") and said not in drawing.text)


def all_tokens(run, table):
    return run.tables[table].filter(population="all")


@pytest.mark.parametrize("name", FAKES)
def test_magnitude_and_kurtosis_name_the_largest(runs, findings, name):
    layers = all_tokens(runs[name], "layers").with_columns(ratio=pl.col("top1") / pl.col("median"))
    assert f", {number(layers['ratio'].max())} times" in findings[name]["magnitude-by-layer"].finding
    most = layers.sort("kurtosis_flat_excess").row(-1, named=True)
    assert (
        f"largest on {most['site']} in layer {most['layer']}: {number(most['kurtosis_flat_excess'])}"
        in findings[name]["kurtosis"].finding
    )


@pytest.mark.parametrize(("name", "dims"), [("one", 1), ("hundreds", 400), ("experts", 2)])
def test_selected_dims_are_counted_and_the_largest_named(runs, findings, name, dims):
    run = runs[name]
    selected = all_tokens(run, "dims").filter("selected")
    assert selected["dim"].n_unique() == dims
    cells = all_tokens(run, "emergence").filter(pl.col("dim").is_in(selected["dim"].implode()))
    most = cells.sort("max_abs").row(-1, named=True)
    said = findings[name]["dimension-map"].finding
    assert f"{number(most['max_abs'])} on {most['site']} in layer {most['layer']}" in said
    assert said.startswith("Dimension 5, the one that" if dims == 1 else f"Of {dims} dimensions that")
    by_rule = selected.group_by("dim").agg(pl.col("rule").n_unique())
    both, alone = (int((by_rule["rule"] == rules).sum()) for rules in (2, 1))
    assert f"select {dims} dimension" in findings[name]["rules"].finding
    assert f"all agree on {both} (" in findings[name]["rules"].finding
    assert f"one rule alone selects {alone}." in findings[name]["rules"].finding
    for rule in ("dettmers", "massive"):
        mine = selected.filter(rule=rule)
        assert f"{mine['one_sided'].sum()} of {len(mine)} dimension" in findings[name]["signs"].finding
    chosen = selected.filter(rule="dettmers").sort("max_abs").row(-1, named=True)
    assert (
        f"{chosen['dim']}, has them in {percent(chosen['blocks_mean'])} of the layers, "
        f"at {percent(chosen['union_mean'])} of the positions" in findings[name]["shares"].finding
    )


def test_where_nothing_is_selected_nothing_is_said_of_dims(findings):
    for name in ("dimension-map", "rules", "signs", "shares", "massive-tokens", "lifecycle", "origin"):
        assert not findings["none"][name].finding and findings["none"][name].text.startswith("Nothing is drawn")


@pytest.mark.parametrize("name", ["one", "experts"])
def test_what_makes_a_dim_is_named_with_its_sum(runs, findings, name):
    life = runs[name].tables["lifecycle"]
    dim = life["target_dim"][0]
    after = life.filter(part="resid_post", target_dim=dim).sort(pl.col("value").abs())
    peak = after.row(-1, named=True)
    said = findings[name]["lifecycle"].finding
    assert said.startswith(f"Dimension {dim} is {number(peak['value'])} after layer {peak['layer']} at position 0")
    added = life.filter(~pl.col("part").is_in(["resid_pre", "resid_post"]), target_dim=dim)
    made = added.filter(pl.col("layer") <= peak["layer"])["value"].max()
    taken = added.filter(pl.col("layer") > peak["layer"])["value"].min()
    assert f"writes {number(made)}, the most" in said and f"takes off {number(-taken)}." in said
    shares = runs[name].tables["origin_shares"].filter(target_dim=dim).sort("share").row(-1, named=True)
    assert f"the MLPs wrote {percent(shares['share'])}" in findings[name]["origin-shares"].finding
    neurons = runs[name].tables["origin_neurons"].filter(target_dim=dim).drop_nulls("neuron").sort("rank")
    first = neurons.row(0, named=True)
    assert f"{percent(first['share'])} from neuron {first['neuron']}" in findings[name]["origin"].finding


def test_the_worst_ablation_is_named_beside_the_unchanged_model(runs, findings):
    effects = runs["one"].summary["ablation"]["effects"]
    zeros = [effect for effect in effects[1:] if effect["value"] == "zero"]
    worst = max(effect["perplexity"] for effect in zeros)
    said = findings["one"]["ablation"].finding
    assert f"from {in_words(effects[0]['perplexity'])} to {in_words(worst)}" in said


def test_experts_are_named_with_their_values(runs, findings):
    tables, said = runs["experts"].tables, findings["experts"]
    most = tables["experts"].drop_nulls("max_abs").sort("max_abs").row(-1, named=True)
    assert said["experts"].finding.startswith(
        f"Expert {most['expert']} of layer {most['layer']} writes the largest |x|, {number(most['max_abs'])} "
    )
    balance = all_tokens(runs["experts"], "expert_balance")
    assert f"(entropy {number(balance['entropy'].min())})" in said["expert-load"].finding
    assert f"has {number(balance['largest_load'].max())} times an even share" in said["expert-load"].finding
    alone = ~pl.col("layers").str.contains("+", literal=True)
    outs = tables["knock_outs"].filter(pl.col("target").is_in(["attention", "mlp"]), alone)
    assert f"perplexity is {number(outs['perplexity'].max())} instead of" in said["knock-outs"].finding


@pytest.mark.parametrize(
    ("value", "words"),
    [(31.04, "31.04"), (3918.2, "3,918"), (21.91e6, "21.9 million"), (2.4e11, "240 billion"), (1e20, "1e+20")],
)
def test_large_numbers_in_words(value, words):
    assert in_words(value) == words
