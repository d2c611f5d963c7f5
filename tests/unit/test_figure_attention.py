"""The figures of attention show what the tables and patterns hold, and their captions say it."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from fake_run import FakeRun
from outlier_features.attention.kept_patterns import AttentionMaps
from outlier_features.attention.sinks_schema import SINKS, SinkSample
from outlier_features.dims.dims_schema import DIMS
from outlier_features.dims.emergence_schema import EMERGENCE
from outlier_features.errors import DamagedFile, InputError
from outlier_features.figures.attention_heatmaps import Panel, attention_grid, head_name, places
from outlier_features.figures.attention_maps import attention_maps
from outlier_features.figures.attention_sinks import attention_sinks
from outlier_features.files.tables import read_table, write_table
from outlier_features.files.tensorfile import TensorFile, write_tensors
from outlier_features.report.render_report import Run


@pytest.fixture
def run(tmp_path):
    return FakeRun().write(tmp_path / "run")


def tables(run):
    sinks, facts = read_table(run / "sinks.parquet", SINKS)
    emergence, dims = read_table(run / "emergence.parquet", EMERGENCE)[0], read_table(run / "dims.parquet", DIMS)[0]
    return sinks, emergence, dims, SinkSample.of(facts)


def heats(figure):
    return [trace for trace in figure.data if trace.type == "heatmap"]


def test_sink_rates_and_magnitudes_are_those_of_the_tables(run):
    sinks, emergence, dims, sample = tables(run)
    figure = attention_sinks(sinks, emergence, dims, ["massive"], sample).views["all"]
    by_head, by_key = heats(figure)
    assert [list(line) for line in by_head.z] == [[0, 1, 1, 1], [0, 0.5, 0.5, 0.5]]
    assert [list(line) for line in by_key.z] == [[0, 0.75, 0.75, 0.75], *[[0, 0, 0, 0]] * 5]
    (line,) = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "lines+markers"]
    # Rule massive selects 5 and 7; its largest is 7.
    assert list(line.y) == [FakeRun().magnitude("all", "resid_post", 7, layer) for layer in range(4)]


def test_the_caption_of_the_sinks_is_computed(run):
    drawing = attention_sinks(*tables(run)[:3], ["massive"], tables(run)[3])
    for sentence in (
        "over the first 6 positions of 2 sequences",
        "The sink rate of position 0, the mean over heads, is largest in layer 1 (75 %), and at least half of that in "
        "layers 1 to 3.",
        "Dimension 7, the largest by rule massive, reaches half of its largest |x| on resid_post in layer 1; the "
        "attention of layer 2 is the first to read that.",
    ):
        assert sentence in drawing.text
    assert drawing.finding == (
        "Position 0 is a sink (alpha > 0.3) in 56.2 % of (sequence, layer, head): 75 % in layer 1, where dimension 7 "
        "steps up, 75 % in layer 2, whose attention first reads it."
    )
    none = attention_sinks(*tables(run)[:3], [], tables(run)[3])
    assert none.finding.endswith("in 56.2 % of (sequence, layer, head), most often in layer 1 (75 %).")


def test_what_is_absent_is_said(run):
    sinks, emergence, dims, sample = tables(run)
    learned = sinks.filter(token=0).with_columns(
        token=pl.lit(None, pl.UInt32), learned=pl.lit(True), sink_rate=pl.lit(0.25)
    )
    sinks = pl.concat([sinks, learned]).filter(pl.col("layer") != 2)
    sample = replace(sample, layers_without_patterns=[2], short_sequences=1)
    drawing = attention_sinks(sinks, emergence, dims.filter(rule="dettmers"), ["massive"], sample)
    for sentence in (
        "The learned sink, which has no position, is one in 25 % of (sequence, layer, head).",
        "Grey, without attention patterns: layer 2.",
        "Of these, 1 sequence with fewer positions",
        "By rule massive, no dimension has massive activations",
    ):
        assert sentence in drawing.text
    by_head, by_key = heats(drawing.views["all"])
    assert [line[2] for line in by_head.z] == [None, None]
    assert list(by_key.z[-1]) == [0.25, 0.25, None, 0.25]
    assert drawing.views["all"].layout.yaxis2.ticktext[-1] == "learned"


def test_kept_patterns_are_drawn_as_they_are(run):
    sinks, *_ = tables(run)
    maps = AttentionMaps.read(run / "attention.safetensors")
    drawing = attention_maps(maps, sinks, ["a", "b", "c", "d", "e", "f"])
    titles = [note.text for note in drawing.views["all"].layout.annotations]
    assert titles == [
        f"layer {layer}, {what}"
        for layer in (1, 2)
        for what in ("average over 2 heads", "head 0 (KV head 0)", "head 1 (KV head 0)")
    ]
    for heat in heats(drawing.views["all"]):
        for query, line in enumerate(heat.z):
            expected = [None] * 6
            expected[0], expected[query] = (0.5, 0.5) if query else (1, 1)
            assert list(line) == expected
        assert list(heat.x) == ["0 a", "1 b", "2 c", "3 d", "4 e", "5 f"] == list(heat.y)
    assert "Layer 1: chosen." in drawing.text
    # Each later query gives half to position 0, in both layers.
    assert drawing.finding == "The later positions of sequence 0 give position 0 50 % of their attention in layer 1."


def test_at_most_64_positions_and_the_learned_sink_are_drawn(run):
    sinks, *_ = tables(run)
    pattern = np.random.default_rng(0).random((1, 2, 100, 101), np.float32)
    maps = AttentionMaps({1: pattern}, {1: "x"}, (3,), (100,), {1: None}, {})
    drawing = attention_maps(maps, sinks, [""] * 100)
    heat = heats(drawing.views["all"])[1]
    np.testing.assert_allclose(np.array(heat.z, float), pattern[0, 0][:64, [*range(64), 100]], atol=6e-5)
    assert list(heat.x) == [*map(str, range(64)), "learned sink"]
    assert "positions 0 to 63 of sequence 3" in drawing.population


def test_names_of_heads_and_places():
    assert [head_name(2, kv_heads) for kv_heads in (None, (0, 0, 1), (0, 1, 0))] == [
        "head 2",
        "head 2 (KV head 1)",
        "head 2 (KV head 0)",
    ]
    assert places(["<b>&", "", "\n", "a" * 20]) == ["0 &lt;b&gt;&amp;", "1", "2 ⏎", f"3 {'a' * 13}…"]


def test_equal_tokens_have_rows_of_their_own():
    figure = attention_grid([Panel("p", np.eye(3))], ["the", "the", "the"], columns=1, size=100)
    assert len(set(figure.data[0].x)) == 3


def test_patterns_of_another_job_are_refused(run):
    file = TensorFile(run / "attention.safetensors")
    arrays = {name: np.array(file.array(name)) for name in file.entries}
    write_tensors(run / "attention.safetensors", arrays, file.provenance | {"job": "b"})
    with pytest.raises(InputError, match="its job is 'b', expected 'a'"):
        Run.read(run)


def test_sinks_of_another_run_are_refused(run):
    sinks, facts = read_table(run / "sinks.parquet", SINKS)
    write_table(run / "sinks.parquet", sinks, SINKS, facts | {"dtype": "bfloat16"})
    with pytest.raises(InputError, match="its dtype is 'bfloat16', expected 'float32'"):
        Run.read(run)


def test_a_file_without_maps_is_refused(run, tmp_path):
    write_tensors(tmp_path / "a.safetensors", {}, {"job": "a"})
    with pytest.raises(InputError, match="expected the attention patterns of a run"):
        AttentionMaps.read(tmp_path / "a.safetensors")


def test_kept_patterns_are_read_as_they_were_written(tmp_path):
    pattern = np.random.default_rng(0).random((2, 2, 4, 4), np.float32)
    maps = AttentionMaps({3: pattern, 1: pattern / 2}, {3: "a", 1: "b"}, (0, 5), (4, 3), {3: [0, 0], 1: None}, {"m": 1})
    maps.write(tmp_path / "a.safetensors")
    found = AttentionMaps.read(tmp_path / "a.safetensors")
    for layer, expected in maps.patterns.items():
        np.testing.assert_array_equal(found.patterns[layer], expected)
    assert replace(found, patterns={}, provenance={}) == replace(maps, patterns={}, provenance={})
    assert found.provenance["maps"] == {
        "layers": [{"layer": 3, "why": "a", "kv_heads": [0, 0]}, {"layer": 1, "why": "b", "kv_heads": None}],
        "sequences": [0, 5], "positions": [4, 3],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["layers", "layer", "why", "kv_heads", "sequences", "positions"])
def test_a_file_that_does_not_say_what_it_kept_is_refused(name, run, tmp_path):
    file = TensorFile(run / "attention.safetensors")
    maps = json.loads(json.dumps(file.provenance["maps"]).replace(f'"{name}"', f'"{name}_"'))
    write_tensors(tmp_path / "a.safetensors", {}, file.provenance | {"maps": maps})
    with pytest.raises(DamagedFile, match=f"expected the attention patterns of a run, found that KeyError.*{name}"):
        AttentionMaps.read(tmp_path / "a.safetensors")
