"""What the report shows of knock-outs: the figures against the tables, and the sentences."""

import math

import polars as pl
import pytest

from fake_run import FakeRun
from outlier_features.figures.knock_outs import knock_out_figures
from outlier_features.files.artifacts import read_json
from outlier_features.summary.facts import facts_in

FAKE = FakeRun(knock_outs=True)
LAYERS, DIMS = FAKE.layers, FAKE.massive


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return FAKE.write(tmp_path_factory.mktemp("knock") / "run")


@pytest.fixture(scope="module")
def drawings(run):
    tables = [pl.read_parquet(run / f"{name}.parquet") for name in ("knock_outs", "knock_out_dims")]
    return {drawing.name: drawing for drawing in knock_out_figures(*tables, summary(run)["knock_outs"], ["mine"])}


def summary(run):
    return read_json(run / "summary.json")


def drawn(trace):
    return dict(zip(trace.x, trace.y, strict=True))


def test_sublayers_by_layer(drawings):
    figure = drawings["knock-outs"].views["all"]
    for kind, name, first in (("attention", "attention", 3), ("mlp", "MLP", 3 + LAYERS - 1)):
        dims = sorted(DIMS, reverse=True)  # the largest first
        panels = [trace for trace in figure.data if trace.name == name]
        assert len(panels) == len(dims) + 1
        for panel in panels[:-1]:
            assert drawn(panel) == {layer: pytest.approx(1 / (first + layer)) for layer in range(1, LAYERS)}, kind
        found = {layer: pytest.approx(math.exp(FAKE.knocked_out_nll(first + layer - 1))) for layer in range(1, LAYERS)}
        assert drawn(panels[-1]) == found
    titles = [axis.title.text for axis in figure.select_yaxes()]
    assert titles[:2] == [f"dim {dim} in layer 2<br>share of -{3 * (1000 + dim):,}" for dim in dims]
    across = sorted(shape.y0 for shape in figure.layout.shapes)
    whole = [math.exp(FAKE.knocked_out_nll(n)) for n in range(3)]  # the unchanged model, and all of each off
    assert across == pytest.approx(sorted([1.0, 1 / 2, 1 / 3] * 2 + whole))


def test_heads(drawings, run):
    loss, value = drawings["head-map"].views["all"].data
    heads = pl.read_parquet(run / "knock_outs.parquet").filter(target="head")
    assert list(loss.y) == [1] and list(loss.z[0]) == heads["nll_change"].to_list()
    assert list(value.z[0]) == [pytest.approx(1 / (1 + n) - 1) for n in heads["variant"]]
    assert "first 4 tokens of the first 2 sequences" in drawings["head-map"].text


def test_a_super_weight_by_degrees(drawings):
    drawing = drawings["super-weight-scale"]
    curve, back = drawing.views["all"].data
    first = 3 + 2 * (LAYERS - 1) + 1
    assert drawn(curve) == {
        scale: pytest.approx(math.exp(FAKE.knocked_out_nll(first + n))) for n, scale in enumerate((0.0, 1.0, 3.0))
    }
    assert drawn(back) == {0.0: pytest.approx(math.exp(FAKE.knocked_out_nll(first + 3)))}
    assert len(drawing.data) == 5 * len(DIMS)


def test_sentences(run):
    (fact,) = [fact for fact in facts_in(summary(run)) if fact.what == "knock-outs"]
    said = " ".join(one.short for one in fact.flat)
    assert f"Without attention of all {LAYERS} layers: perplexity 9.488 (loss +0.25 nats per token); left" in said
    assert "50 % of dimension 7 (layer 2)" in said
    assert "Of single heads the loss needs most, in nats per token: layer 1 head 1 (+" in said
    assert "Dimension 7 at its massive tokens set to its mean there" in said
    assert "Weight W_down[7, 30] of layer 1 times 0, 1 and 3" in said and "lowest at 0 " in said
    assert "Not tried: attention of layer 0 (it has none)." in said


def test_nothing_to_draw(tmp_path):
    """A model without what is knocked out, and a run that was not asked."""
    run = FAKE.write(tmp_path / "run")
    names = ("knock_outs", "knock_out_dims")
    rows, dims = (pl.read_parquet(run / f"{name}.parquet").filter(variant=0) for name in names)
    drawn = knock_out_figures(rows, dims, summary(run)["knock_outs"], [])
    assert all(drawing.text.startswith("Nothing is drawn") and not drawing.views for drawing in drawn)
    assert summary(FakeRun().write(tmp_path / "other"))["knock_outs"] is None
