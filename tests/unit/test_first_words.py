"""The first words of a run's page: each clause against the tables that carry it, and silence where none does."""

import dataclasses

import polars as pl
import pytest

from fake_run import RULES, FakeRun
from outlier_features.figures.first_screen import first_screen
from outlier_features.report.page_template import glossed
from outlier_features.summary.first_words import first_words, in_words, lead, standing_out
from outlier_features.summary.glossary import TERMS, WORDS
from outlier_features.summary.report_run import Run
from outlier_features.wording import number


@pytest.fixture
def told(tmp_path):
    def make(**changes):
        run = Run.read(FakeRun(**changes).write(tmp_path / "tiny/text"))
        return run, first_words(run.summary, run.tables)

    return make


def test_the_sentence_is_what_the_tables_hold(told):
    run, words = told()
    massive = run.tables["massive"].filter(dim=7).sort(pl.col("value").abs())
    largest = massive.row(-1, named=True)
    assert set(massive["token"]) == {0} and massive["sequence"].n_unique() == run.summary["corpus"]["sequences"]
    start = f"At the first token of both sequences, dimension 7 reaches as low as {number(largest['value'])} in layer "
    assert words.sentence.startswith(f"{start}{largest['layer']}.")
    rows = run.tables["ablation"]
    zeros = rows.filter(target="dims", dims="7", value="zero").sort("perplexity")
    after = f"({in_words(rows['perplexity'][0])} to {in_words(zeros['perplexity'][-1])})"
    assert f"perplexity {after[1:]}" in words.sentence
    assert [one.value for one in words.numbers[:3]] == ["2 of 64", number(largest["value"]), "2 of 2"]
    assert words.notes == ()


def test_a_dim_jumps_where_one_layer_makes_half_of_it(told):
    run, words = told()
    assert "reaches as low as -2,009 in layer 2" in words.sentence  # of which layer 1 made most
    tables = dict(run.tables)
    life = tables["lifecycle"]
    made_there = pl.when(pl.col("part") == "resid_pre", pl.col("layer") == 2).then(0.0).otherwise(pl.col("value"))
    tables["lifecycle"] = life.with_columns(value=made_there)
    assert "jumps to as low as -2,009 in layer 2" in first_words(run.summary, tables).sentence
    del tables["lifecycle"]
    assert "reaches as low as -2,009 in layer 2" in first_words(run.summary, tables).sentence


def test_other_tokens_than_the_first_are_counted(told):
    _, words = told(position=2)
    assert words.sentence.startswith("At 2 tokens in both sequences, dimension 7")


def test_without_an_ablation_nothing_is_said_of_it(told):
    _, words = told(missing={"ablation": "`skip` names ablation"})
    assert words.sentence.count(".") == 1 and "perplexity" not in words.sentence
    assert words.numbers[3].what == "perplexity"


def test_an_outlier_feature_alone(told):
    run, words = told(massive=())
    assert lead(run.summary).dim == 5
    row = run.tables["dims"].filter(population="all", rule="dettmers", dim=5).row(0, named=True)
    assert f"at {100 * row['union_mean']:.3g} % of the tokens" in words.sentence
    assert f"in {100 * row['blocks_mean']:.3g} % of the layers" in words.sentence
    assert words.sentence.startswith("Dimension 5 is an outlier in both sequences: |x| >= 6")


def test_that_nothing_was_found_is_the_sentence(told):
    run, words = told(outliers=(), massive=(), hits=())
    assert lead(run.summary) is None and standing_out(run.summary) == []
    assert words.sentence.startswith("Nothing stands out: none of the 64 dimensions")
    row = max(run.summary["populations"]["all"]["largest"], key=lambda row: row["max"])
    assert f"{number(row['max'])} (resid_post, layer {row['layer']}" in words.sentence
    assert words.numbers[0].value == "0 of 64"


def test_a_threshold_that_half_of_all_dims_pass_tells_nothing(told):
    run, words = told(outliers=tuple(range(32)), massive=())
    assert words.notes[0].startswith("The fixed threshold 6 tells nothing here: 32 of 64 dimensions pass rule dettmers")
    assert lead(run.summary) is None


def test_a_scale_stands_in_for_such_a_threshold(told, tmp_path, monkeypatch):
    scaled = RULES["dettmers"] | {"sites": ["resid_post"], "scale": "layer_rms", "follow_up": False}
    monkeypatch.setitem(RULES, "by_scale", scaled)
    run, _ = told(outliers=tuple(range(32)), massive=())
    part = run.summary["populations"]["all"]["rules"]
    part["by_scale"] = {**part["dettmers"], "dims": part["dettmers"]["dims"][:3]}
    first = lead(run.summary)
    assert first.rule.name == "by_scale" and len(standing_out(run.summary)) == 3
    note = first_words(run.summary, run.tables).notes[0]
    assert "rule by_scale (|x| / RMS of the sequence and layer) 3" in note


def test_readings_that_disagree_are_told(told):
    run, words = told()
    assert words.notes == ()
    tables = dict(run.tables)
    by_sites = pl.col("layer_reading") == "sites_share"
    tables["sensitivity"] = tables["sensitivity"].with_columns(
        pairs=pl.when(by_sites).then(0).otherwise(pl.col("pairs"))
    )
    (note,) = first_words(run.summary, tables).notes
    assert "100 pairs of a sequence and a dimension pass" in note and "This page counts by blocks." in note


def test_the_picture_is_the_traced_value(told):
    run, _ = told()
    drawing = first_screen(run.tables, lead(run.summary), ["resid_post"])
    life = run.tables["lifecycle"].filter(target_dim=7, part="resid_post").sort("layer")
    (curve,) = [trace for trace in drawing.views["all"].data if trace.type == "scatter"]
    assert (list(curve.x), list(curve.y)) == (life["layer"].to_list(), life["value"].to_list())
    sinks = run.tables["sinks"].filter(token=0).group_by("layer").agg(pl.col("sink_rate").mean()).sort("layer")
    (bars,) = [trace for trace in drawing.views["all"].data if trace.type == "bar"]
    assert list(bars.y) == pytest.approx([100 * rate for rate in sinks["sink_rate"]])
    parts = run.tables["lifecycle"].filter(~pl.col("part").is_in(["resid_pre", "resid_post"]), target_dim=7)
    most = parts.sort(pl.col("value").abs()).row(-1, named=True)
    boxes = [note.text for note in drawing.views["all"].layout.annotations if note.showarrow]
    assert any(f"of layer {most['layer']}<br>writes {number(most['value'])}" in text for text in boxes)


def test_the_picture_without_a_trace_is_the_largest_value(told):
    run, _ = told(missing={"origin": "`skip` names origin"}, massive=())
    first = lead(run.summary)
    tables = {name: table for name, table in run.tables.items() if name != "lifecycle"}
    drawing = first_screen(tables, first, ["attn_norm"])
    rows = tables["emergence"].filter(population="all", site="attn_norm", dim=5).sort("layer")
    assert list(drawing.views["all"].data[-1].y) == rows["max_abs"].to_list()
    assert dataclasses.replace(drawing, views={}).sites == "attn_norm"


def test_a_picture_of_nothing_is_every_layer_s_largest_over_its_median(told):
    run, _ = told(outliers=(), massive=(), hits=())
    drawing = first_screen(run.tables, None, [])
    layers = run.tables["layers"].filter(population="all")
    for trace in drawing.views["all"].data:
        rows = layers.filter(site=trace.name).sort("layer")
        assert list(trace.y) == pytest.approx((rows["max"] / rows["median"]).to_list())


@pytest.mark.parametrize(
    ("value", "words"),
    [(31.04, "31.04"), (3886902.0, "3.9 million"), (21.9e6, "22 million"), (242.6e9, "243 billion"), (2e15, "2e+15")],
)
def test_a_number_to_be_read_once(value, words):
    assert in_words(value) == words


def test_a_word_brings_its_meaning_once():
    seen: list[str] = []
    html = glossed("Tokens <b> and a massive activation, tokens", seen)
    assert seen == ["Token", "Massive activation"] and html.count('class="term"') == 2
    assert "&lt;b&gt;" in html and str(html).startswith('<span class="term" tabindex="0">Tokens<')
    assert glossed("tokens", seen) == "tokens"
    assert set(WORDS.values()) <= set(TERMS)
