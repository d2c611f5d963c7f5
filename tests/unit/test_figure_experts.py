"""What the report shows of experts: both figures against the tables, and the sentences."""

import math

import polars as pl
import pytest

from fake_run import FakeRun
from outlier_features.figures.expert_load import expert_load
from outlier_features.figures.experts import MAX_ROWS, expert_figures, expert_map, routed_parts
from outlier_features.files.artifacts import read_json
from outlier_features.rules.super_expert import SuperExpert
from outlier_features.summary.expert_facts import expert_facts
from test_render_report import page  # noqa: F401  (a fixture)

EXPERTS, LAYERS = 3, 4
RULE = SuperExpert(name="mine", percentile=90.0)
RULES = {"mine": RULE.config()}


@pytest.fixture
def run(tmp_path):
    return FakeRun(experts=EXPERTS).write(tmp_path / "run")


def tables(run):
    return pl.read_parquet(run / "experts.parquet"), pl.read_parquet(run / "routing.parquet")


def facts(experts):
    return expert_facts(experts, RULES)


def said(run):
    return [(fact.topic, " ".join(one.text for one in fact.flat)) for fact in facts(summary(run)["experts"])]


def summary(run):
    return read_json(run / "summary.json")


def test_the_map_shows_every_expert_of_every_layer(run):
    heat, *marks = expert_map(tables(run)[0], LAYERS, RULE).views["all"].data
    assert list(heat.x) == [0, 1, 2, 3] and list(heat.y) == [-2, -1, 0, 1, 2]
    plan = FakeRun(experts=EXPERTS)
    for row, values in zip(heat.y, heat.z, strict=True):
        assert values[0] is None  # the first block is dense
        for layer in (1, 2, 3):
            if row == -1:
                assert values[layer] is None
            else:
                assert 10 ** values[layer] == pytest.approx(plan.expert_max(layer, None if row == -2 else row))
    marked = [
        (mark.marker.symbol, x, y) for mark in marks for x, y in zip(mark.x, mark.y, strict=True) if x is not None
    ]
    assert marked == [("square-open", 1, 1), ("circle-open", 1, 1)]


def test_bars_split_the_mlps_output(run):
    drawing = routed_parts(tables(run)[1], ["massive"])
    bars = [trace for trace in drawing.views["all"].data if trace.type == "bar"]
    assert [*drawing.views["all"].layout.yaxis.ticktext] == ["dim 7, layer 1", "dim 5, layer 1"]
    for at in (0, 1):
        parts = {data[0]: x for bar in bars for x, y, data in zip(bar.x, bar.y, bar.customdata, strict=True) if y == at}
        assert parts == {"expert 1": 1.05, "expert 0": -0.1, "shared": 0.05}
    low, high = drawing.views["all"].layout.xaxis.range
    assert low < -0.1 and high > 1.1


def test_the_load_of_every_expert_is_drawn(run):
    drawing = expert_load(pl.read_parquet(run / "expert_load.parquet"), pl.read_parquet(run / "expert_balance.parquet"),
                          LAYERS, ["all"])  # fmt: skip
    load, weight, entropy, largest = drawing.views["all"].data
    assert [*load.y] == [*range(EXPERTS)] and [*load.x] == [*range(LAYERS)]
    assert [line[1] and 2 ** line[1] for line in load.z] == [pytest.approx(1.5), pytest.approx(1.5), None]
    assert [line[2] for line in load.z] == [0.0] * 3 and [line[0] for line in load.z] == [None] * 3
    assert [line[1] for line in weight.z] == [0.5, 0.5, None]
    assert entropy.y[0] is None and entropy.y[1:] == pytest.approx([math.log(2) / math.log(3), 1, 1])
    assert largest.y[1:] == pytest.approx([1.5, 1, 1])


def test_many_activations_are_capped_and_said(run):
    routing = tables(run)[1].filter(dim=7)
    many = pl.concat([routing.with_columns(dim=pl.lit(dim, pl.UInt32)) for dim in range(MAX_ROWS + 5)])
    drawing = routed_parts(many, ["massive"])
    assert len(drawing.views["all"].layout.yaxis.ticktext) == MAX_ROWS
    assert f"Shown: the {MAX_ROWS} of the largest activations out of {MAX_ROWS + 5} bars." in drawing.text


def test_without_experts_nothing_is_drawn_or_said(tmp_path):
    run = FakeRun().write(tmp_path / "run")
    assert (
        expert_figures(*tables(run), LAYERS, RULE, ["massive"]) == []
        and said(run) == []
        and summary(run)["experts"] is None
    )


def test_the_report_has_figures_and_sentences(page):  # noqa: F811
    parsed = page(FakeRun(experts=EXPERTS), FakeRun(model="dense"))
    assert {name for name in parsed.figures if "expert" in name or "routing" in name} == {
        "tiny/text/experts/all",
        "tiny/text/routing/all",
        "tiny/text/expert-load/all",
        "tiny/text/expert-load/without_first",
        "tiny/text/expert-ablation/all",
    }
    assert parsed.shown.count("1 super expert among 9 routed experts (0 of them never chosen) and 3 shared ones") == 1
    assert parsed.shown.count("Rule super_expert (largest |x| above the 99.5th percentile") == 1


def test_captions_and_words_have_the_rules_own_name_and_numbers(run):
    drawing = expert_map(tables(run)[0], LAYERS, RULE)
    assert drawing.rule == "mine" and RULE.criteria() in drawing.text and "99.5" not in drawing.text
    (_, text), *_ = said(run)
    assert text.startswith(f"Rule mine ({RULE.criteria()}) finds 1 super expert")


def test_words_name_the_expert_its_token_and_its_share(run):
    (topic, text), (_, formed), (_, routers), _ = said(run)
    assert "2 of 3 experts" in routers and "1.5 times as often" in routers and "1 expert never" in routers
    assert "router of layer 1 is the least even: entropy 0.6309" in routers
    assert topic == "found"
    assert "over 2 sequences (site expert_out, all positions): expert 1 of layer 1." in text
    expert = "Expert 1 of layer 1", "4,000 in dimension 7 at position 0 of sequence 0, 2,000 after", "mean weight 0.5."
    assert [part for part in (*expert, "3 positions") if part not in text] == []
    part = (
        "Dimension 7",
        "x = -2,007 at position 0 of sequence 0 (“The”)",
        "-1,900",
        "105 %",
        "(weight 0.5)",
        "3 parts.",
    )
    assert [part for part in ("experts of layer 1", *part) if part not in formed] == []


def row(layer, expert, **changes):
    return {
        "layer": layer, "part": "expert" if expert is not None else "shared", "expert": expert, "max_abs": 50.0,
        "max_abs_weighted": 5.0, "sequence": 0, "token": 1, "dim": 2, "tokens_routed": 1, "mean_weight": 0.25,
        "max_abs_input": 70.0, "neuron": 11,
        "first_three_quarters_code": layer < 3, "published": None,
    } | changes  # fmt: skip


NOTHING = {
    "sequences": 1, "layers": [1, 2, 3], "routed": 9, "never_chosen": 2, "shared": 0, "forming": [],
    "super_experts": [], "by_code": [], "elsewhere": [], "published": None, "routing": [], "balance": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "phrases"),
    [
        ({}, ["9 routed experts (2 of them never chosen)", "no layer with experts forms a massive activation."]),
        (
            {"forming": [1], "elsewhere": [row(2, 0), row(3, None)]},
            ["form no massive activation: expert 0 of layer 2 and the shared expert of layer 3; 1 of 2 in the first "
             "three quarters"],
        ),
        ({"forming": [1], "by_code": [row(1, 3)]}, ["(super_expert_code), would find expert 3 of layer 1."]),
    ],
)  # fmt: skip
def test_what_was_not_found_is_said(changes, phrases):
    (fact,) = facts(NOTHING | changes)
    assert fact.topic == "not found" and "finds no super expert" in fact.text
    assert [phrase for phrase in phrases if phrase not in fact.text] == []


def test_published_experts_are_compared():
    published = [{"layer": layer, "part": "expert", "expert": 5, "super_expert": layer == 1} for layer in (1, 2)]
    *_, fact = facts(NOTHING | {"published": published})
    assert fact.topic == "found" and "expert 5 of layer 1 and expert 5 of layer 2. Found here" in fact.text
    assert fact.text.endswith("of these 2: expert 5 of layer 1.")
