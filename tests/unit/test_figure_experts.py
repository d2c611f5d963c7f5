"""What the report shows of experts: both figures against the tables, and the sentences."""

import polars as pl
import pytest

from fake_run import FakeRun
from outlier_features.figures.experts import MAX_ROWS, expert_figures, expert_map, routed_parts
from outlier_features.files.artifacts import read_json
from outlier_features.summary.expert_facts import expert_facts
from test_render_report import page  # noqa: F401  (a fixture)

EXPERTS, LAYERS = 3, 4


@pytest.fixture
def run(tmp_path):
    return FakeRun(experts=EXPERTS).write(tmp_path / "run")


def tables(run):
    return pl.read_parquet(run / "experts.parquet"), pl.read_parquet(run / "routing.parquet")


def said(run):
    return [(fact.topic, " ".join(one.text for one in fact.flat)) for fact in expert_facts(summary(run)["experts"])]


def summary(run):
    return read_json(run / "summary.json")


def test_the_map_shows_every_expert_of_every_layer(run):
    heat, *marks = expert_map(tables(run)[0], LAYERS).views["all"].data
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


def test_many_activations_are_capped_and_said(run):
    routing = tables(run)[1].filter(dim=7)
    many = pl.concat([routing.with_columns(dim=pl.lit(dim, pl.UInt32)) for dim in range(MAX_ROWS + 5)])
    drawing = routed_parts(many, ["massive"])
    assert len(drawing.views["all"].layout.yaxis.ticktext) == MAX_ROWS
    assert f"Shown: the {MAX_ROWS} of the largest activations out of {MAX_ROWS + 5} bars." in drawing.text


def test_without_experts_nothing_is_drawn_or_said(tmp_path):
    run = FakeRun().write(tmp_path / "run")
    assert (
        expert_figures(*tables(run), LAYERS, ["massive"]) == [] and said(run) == [] and summary(run)["experts"] is None
    )


def test_the_report_has_figures_and_sentences(page):  # noqa: F811
    parsed = page(FakeRun(experts=EXPERTS), FakeRun(model="dense"))
    assert {name for name in parsed.figures if "experts" in name or "routing" in name} == {
        "tiny/text/experts/all",
        "tiny/text/routing/all",
    }
    sentence = "Rule super_expert finds 1 super expert among 9 routed experts and 3 shared ones in layers 1 to 3, over"
    assert parsed.shown.count("super_expert finds") == 1 and sentence in parsed.shown


def test_words_name_the_expert_its_token_and_its_share(run):
    (topic, text), (_, formed) = said(run)
    assert topic == "found"
    assert "over 2 sequences (site expert_out, all positions): expert 1 of layer 1." in text
    assert (
        "Expert 1 of layer 1 writes up to |x| = 4,000 (dimension 7, position 0 of sequence 0), 2,000 after its weight; "
        "3 positions went through it, with mean weight 0.5."
    ) in text
    assert formed.startswith("The MLPs with experts that form massive activations are those of layer 1;")
    assert (
        "Dimension 7 (x = -2,007 at token “The”, position 0 of sequence 0): layer 1 adds -1,900; expert 1 (weight 0.5) "
        "gives 105 % of the MLP's output, the largest of 3 parts."
    ) in formed


def row(layer, expert, **changes):
    return {
        "layer": layer, "part": "expert" if expert is not None else "shared", "expert": expert, "max_abs": 50.0,
        "max_abs_weighted": 5.0, "sequence": 0, "token": 1, "dim": 2, "tokens_routed": 1, "mean_weight": 0.25,
        "first_three_quarters_code": layer < 3, "published": None,
    } | changes  # fmt: skip


NOTHING = {
    "sequences": 1, "layers": [1, 2, 3], "routed": 9, "never_chosen": 2, "shared": 0, "forming": [],
    "super_experts": [], "by_code": [], "elsewhere": [], "published": None, "routing": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        (
            {},
            [("not found", "Rule super_expert finds none among 9 routed experts (2 of them never chosen) in layers "
              "1 to 3, over 1 sequence (site expert_out, all positions): no layer with experts forms a massive "
              "activation.")],
        ),
        (
            {"forming": [1], "elsewhere": [row(2, 0), row(3, None)]},
            [("not found", "Rule super_expert finds none among 9 routed experts (2 of them never chosen) in layers "
              "1 to 3, over 1 sequence (site expert_out, all positions). As large, but in layers that form no massive "
              "activation: expert 0 of layer 2 and the shared expert of layer 3 (1 of 2 in the first three quarters "
              "of the layers, the published code's condition).")],
        ),
        (
            {"forming": [1], "by_code": [row(1, 3)]},
            [("not found", "Rule super_expert finds none among 9 routed experts (2 of them never chosen) in layers "
              "1 to 3, over 1 sequence (site expert_out, all positions). The authors' code, which ranks the experts of "
              "the first three quarters of the layers alone (super_expert_code), would find expert 3 of layer 1.")],
        ),
    ],
)  # fmt: skip
def test_what_was_not_found_is_said(changes, sentences):
    assert [(fact.topic, fact.text) for fact in expert_facts(NOTHING | changes)] == sentences


def test_published_experts_are_compared():
    published = [{"layer": layer, "part": "expert", "expert": 5, "super_expert": layer == 1} for layer in (1, 2)]
    *_, fact = expert_facts(NOTHING | {"published": published})
    assert (fact.topic, fact.text) == (
        "found",
        "Published as super experts of this model: expert 5 of layer 1 and expert 5 of layer 2 (Su et al. 2025); 1 of "
        "2 is among those found here.",
    )
