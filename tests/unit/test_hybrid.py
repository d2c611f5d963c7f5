"""Hybrids: which blocks have attention, by the model's own config; marks under axes of layers; words."""

from dataclasses import replace

import plotly.graph_objects as go
import polars as pl
import pytest

import zoo
from fake_run import FakeRun
from outlier_features.attention.sinks_schema import SinkSample
from outlier_features.figures.attention_sinks import attention_sinks
from outlier_features.figures.hybrid import with_attention_marked
from outlier_features.figures.run_figures import run_figures
from outlier_features.figures.style import LAYER_AXIS, Drawing, panels, set_layer_axis
from outlier_features.model.sites import attention_blocks, find_sites
from outlier_features.summary.hybrid import attention_of_hybrid, hybrid_sentence
from outlier_features.summary.report_run import Run

JAMBA = dict(
    zoo._MOE, num_experts=4, attn_layer_period=4, attn_layer_offset=2, expert_layer_period=2, expert_layer_offset=1,
    mamba_d_state=8, mamba_dt_rank=8, use_mamba_kernels=False,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "blocks"), [("qwen3_next", [3]), ("jamba", [2]), ("llama", [0, 1, 2, 3]), ("gpt_oss", [0, 1, 2, 3])]
)
def test_blocks_with_attention_are_those_of_the_config(name, blocks, monkeypatch):
    """GPT-OSS alternates a sliding window with full attention: both are attention."""
    monkeypatch.setitem(zoo.CONFIGS, "jamba", JAMBA)
    loaded = zoo.loaded(name)
    kinds = loaded.config.layer_types if name == "qwen3_next" else None
    assert attention_blocks(find_sites(loaded)) == blocks
    assert kinds is None or [n for n, kind in enumerate(kinds) if kind == "full_attention"] == blocks


@pytest.mark.parametrize(("attention", "marked"), [([3, 7], [3, 7]), ([*range(8)], []), ([], []), (None, [])])
def test_only_a_hybrid_is_spoken_of(attention, marked):
    model = {"blocks": 8, "attention_blocks": attention}
    assert attention_of_hybrid(model) == marked
    said = "Of its 8 layers only layers 3 and 7 mix tokens by softmax attention."
    assert hybrid_sentence(model) == (said if marked else "")


def test_marks_lie_under_the_layers_with_attention():
    figure = panels([200, 100], ["one", "other"])
    for row, column in ((1, 1), (2, 1), (2, 2)):
        figure.add_scatter(x=[0, 1, 2, 3], y=[1, 2, 3, 4], row=row, col=column)
    set_layer_axis(figure, 3, 2)
    drawing = Drawing("a", "A", "s", "r", "all", "Text.", views={"all": figure})
    marked = with_attention_marked(drawing, [1, 3])
    assert marked.text == "Text. Black under the axis: layers 1 and 3, which alone have softmax attention."
    found = {(shape.xref, shape.yref, (shape.x0 + shape.x1) / 2, shape.y0) for shape in figure.layout.shapes}
    assert found == {(f"x{n}", f"y{n} domain", layer, 0) for n in (3, 4) for layer in (1, 3)}
    assert all(-0.1 < shape.y1 < 0 for shape in figure.layout.shapes)
    other = Drawing("b", "B", "s", "r", "all", "Text.", views={"all": go.Figure(panels([90], ["tokens"]))})
    assert with_attention_marked(other, [1, 3]) is other


def test_every_axis_of_layers_of_a_report_is_marked(tmp_path):
    run = Run.read(FakeRun(experts=3).write(tmp_path / "run"))
    model = {**run.summary["model"], "attention_blocks": [1, 3]}
    hybrid = replace(run, summary={**run.summary, "model": model})
    plain, marked = run_figures(run), run_figures(hybrid)
    of_layers = 0
    for before, after in zip(plain, marked, strict=True):
        for population, view in before.views.items():
            has_axis = any((axis.title.text or "").startswith(LAYER_AXIS) for axis in view.select_xaxes())
            shapes = len(after.views[population].layout.shapes) - len(view.layout.shapes)
            assert (shapes > 0) == has_axis == (after.text != before.text), before.name
            of_layers += has_axis
    assert of_layers > 10


def test_the_first_attention_after_a_step_up_reads_it(tmp_path):
    """The dim steps up in layer 1, which reads itself; layer 2 has no attention."""
    run = Run.read(FakeRun().write(tmp_path / "run"))
    sinks = run.tables["sinks"].filter(pl.col("layer").is_in([0, 3]))
    sample = replace(SinkSample.of(run.maps.provenance), layers_without_patterns=[1, 2])
    text = attention_sinks(sinks, run.tables["emergence"], run.tables["dims"], ["massive"], sample).text
    assert "in layer 1; the attention of layer 3 is the first to read that." in text
    assert "without attention patterns: layers 1 to 2" in text
