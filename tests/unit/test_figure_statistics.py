"""The figures of distribution, kurtosis, positions and signs against the tables, and where there is nothing to draw."""

import math

import numpy as np
import polars as pl
import pytest

from fake_run import BASIS, KURTOSES, POPULATIONS, RULES, FakeRun
from outlier_features.detect import layers_schema
from outlier_features.dims import dims_schema, emergence_schema
from outlier_features.figures.distribution import UNDRAWN, distribution, site_thresholds
from outlier_features.figures.kurtosis import kurtosis
from outlier_features.figures.positions import positions
from outlier_features.figures.signs import signs
from outlier_features.files.artifacts import read_json
from outlier_features.rules.kinds import hit_rules
from outlier_features.wording import number, percent
from test_render_report import SITES, read, traces

LAYERS = 4
THRESHOLDS = {"attn_norm": {6.0: ["dettmers"]}, "resid_post": {100.0: ["massive"]}}


@pytest.fixture
def run(tmp_path):
    return FakeRun().write(tmp_path / "run")


def axes(drawing):
    """Ranges and ticks of every axis of each view."""
    return [
        [(axis.range, axis.tickvals) for axis in [*view.select_xaxes(), *view.select_yaxes()]]
        for view in drawing.views.values()
    ]


def lines(view):
    """Heights of the dashed lines, by axis."""
    return [(shape.yref, shape.y0) for shape in view.layout.shapes if shape.line.dash == "dash"]


def test_cells_are_shares_of_a_layers_values(run):
    plan = FakeRun()
    drawing = distribution(read(run, "distribution"), LAYERS, THRESHOLDS, POPULATIONS)
    for population in POPULATIONS:
        heats = [trace for trace in drawing.views[population].data if trace.type == "heatmap"]
        assert len(heats) == len(BASIS)
        for heat in heats:
            zeros, _, *bins = range(len(heat.z))
            for layer in range(LAYERS):
                values = plan.values(population, layer)
                found = {}
                for row in bins:
                    if heat.z[row][layer] is not None:
                        edges = tuple(round(10 ** heat.y[row + end], 9) for end in (0, 1))
                        span, told, part = heat.customdata[row][layer]
                        found[edges] = int(told.split()[0].replace(",", ""))
                        share = found[edges] / sum(values.values())
                        assert span == f"|x| from {number(edges[0])} to {number(edges[1])}"
                        assert part == percent(share)
                        assert 10 ** heat.z[row][layer] == pytest.approx(share)
                assert found == {bin: count for bin, count in values.items() if bin[0] > 1e-6}
                told = heat.customdata[zeros][layer]
                none = values.get((0.0, 2.0**-126))
                assert told[:2] == ["x = 0", f"{none} value{'' if none == 1 else 's'}"] if none else told is None
        # Their axes are logarithms, which no reader reads.
        assert all("%{y" not in heat.hovertemplate and "%{z" not in heat.hovertemplate for heat in heats)
    assert "exactly 0" in drawing.text
    view = drawing.views["all"]
    assert lines(view) == [("y", pytest.approx(math.log10(6))), ("y3", 2.0)]
    assert axes(drawing)[0] == axes(drawing)[1]
    assert drawing.data["values"].sum() == read(run, "distribution").filter(
        (pl.col("low") == 0) | (pl.col("low") > 1e-6)
    )["values"].sum()  # fmt: skip


def test_bins_that_are_left_out_hold_little_of_every_layer():
    """A site whose layers differ by four powers of ten: what the largest could do without is the smallest's bulk."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal((2, 20000)) * [[1e-3], [10.0]])
    exponents = np.floor(np.log2(x))
    rows = [
        {"population": "all", "site": "resid_post", "layer": layer, "low": low, "high": 1.5 * low, "values": values}
        for layer in (0, 1)
        for low, values in zip(*np.unique(2.0 ** exponents[layer], return_counts=True), strict=True)
    ]
    bins = pl.DataFrame(rows, schema=layers_schema.DISTRIBUTION.schema)
    drawn = distribution(bins, 2, {}, ["all"]).data
    assert len(drawn) < len(bins)
    for layer in (0, 1):
        assert 20000 * (1 - UNDRAWN) <= drawn.filter(layer=layer)["values"].sum() <= 20000
    assert drawn["low"].min() == drawn.filter(layer=0)["low"].min()


def test_thresholds_are_those_of_the_run(run):
    summary = read_json(run / "summary.json")
    assert site_thresholds(summary) == {
        "attn_norm": {6.0: ["dettmers"]}, "mlp_norm": {6.0: ["dettmers"]}, "resid_post": {100.0: ["massive"]},
    }  # fmt: skip
    summary["rules"]["dettmers"]["threshold"] = 5.0
    summary["location"] = {"rule": "location", "threshold": 6.5, "populations": {"all": {"mlp_norm": {}}}}
    assert site_thresholds(summary)["mlp_norm"] == {5.0: ["dettmers"], 6.5: ["location"]}


@pytest.mark.parametrize("population", POPULATIONS)
def test_kurtoses_equal_the_table(run, population):
    plan = FakeRun()
    drawing = kurtosis(read(run, "layers"), LAYERS, POPULATIONS)
    found = traces(drawing, population=population)
    for trace, (name, site) in zip(found, [(name, s) for name in KURTOSES for s in range(3)], strict=True):
        assert trace.name == BASIS[site]
        assert np.sinh(trace.y) == pytest.approx([plan.kurtosis(name, site, layer) for layer in range(LAYERS)])
    assert min(found[0].y) < 0  # a negative one has a place
    assert lines(drawing.views[population]) == [("y", 0.0), ("y2", math.asinh(3)), ("y3", math.asinh(1))]
    assert axes(drawing)[0] == axes(drawing)[1]
    assert len({(trace.line.dash, trace.marker.symbol) for trace in found}) == 3


def test_kurtosis_of_a_constant_tensor_and_of_a_layer_without_the_site(run):
    layers = read(run, "layers").with_columns(
        positions=pl.lit(5),
        kurtosis_token=pl.when(pl.col("layer") != 2).then("kurtosis_token"),
    )
    drawing = kurtosis(layers.filter((pl.col("layer") != 1) | (pl.col("site") != "mlp_norm")), LAYERS, POPULATIONS)
    _, mlp, _, token, *_ = traces(drawing)
    assert [value is None for value in mlp.y] == [False, True, False, False]
    assert [value is None for value in token.y] == [False, False, True, False]
    assert "6 values of a constant tensor are not defined" in drawing.text


@pytest.mark.parametrize("population", POPULATIONS)
def test_positions_equal_the_table(run, population):
    plan = FakeRun()
    drawing = positions(read(run, "positions"), hit_rules(RULES), POPULATIONS)
    over = [trace for trace in traces(drawing, population=population) if trace.mode.startswith("lines")]
    first = 1 if population == "without_first" else 0
    for site, (counts, largest) in zip(BASIS, zip(over[::2], over[1::2], strict=True), strict=True):
        hit = [plan.hits_at(site, token) if token >= first else None for token in range(6)]
        assert [None if y is None else round(10**y - 1) for y in counts.y] == hit
        assert list(largest.y) == [200.0 + token if hit[token] else None for token in range(6)]
    stars = [trace for trace in traces(drawing, population=population) if trace.mode == "markers"]
    assert [trace.x[0] for trace in stars] == ([] if first else [0] * 6)
    assert axes(drawing)[0] == axes(drawing)[1]
    assert drawing.views[population].layout.xaxis.range[0] < -0.5
    assert lines(drawing.views["all"]) == [("y2", 6.0), ("y4", 6.0), ("y6", 100.0)]
    assert "massive, |x| > 100 and |x| >= 1,000 medians, on resid_post" in drawing.rule


def test_positions_of_sites_without_a_rule_or_a_hit():
    plan = FakeRun(sites=("attn_out", "mlp_norm"))
    table = plan._positions().with_columns(
        sequences_hit=pl.when(pl.col("site") == "mlp_norm").then(0).otherwise("sequences_hit"),
        max_abs=pl.when(pl.col("site") == "attn_out").then("max_abs"),
    )
    drawing = positions(table, hit_rules(RULES), POPULATIONS)
    assert drawing.rule == "no rule, |x| >= 4 (the floor), on attn_out; dettmers, |x| >= 6, on mlp_norm"
    assert "No sequence has a hit on mlp_norm." in drawing.text
    notes = [note.text for note in drawing.views["all"].layout.annotations]
    assert notes.count("no |x| reaches the floor") == 1


def test_signs_equal_the_tables(run):
    plan, dims = FakeRun(), read(run, "dims")
    split = dims.with_columns(
        positive=pl.when(pl.col("dim") == 7).then(5).otherwise("positive"),
        negative=pl.when(pl.col("dim") == 7).then(15).otherwise("negative"),
        one_sided=pl.col("dim") != 7,
    )
    sites = {"dettmers": ["attn_norm", "mlp_norm"], "dettmers_heads": [], "massive": ["resid_post"]}
    drawing = signs(split, read(run, "emergence"), sites, POPULATIONS)
    bars = traces(drawing, "bar")
    assert [(list(bar.x), list(bar.y)) for bar in bars] == [
        ([0.0], [0]), ([1.0], [0]), ([0.0, -0.75], [1, 0]), ([1.0, 0.25], [1, 0]),
    ]  # fmt: skip
    stars = [(trace.x, trace.y) for trace in traces(drawing, "scatter") if trace.marker.symbol == "star" and trace.x]
    assert stars == [((1.08,), (0,)), ((1.08,), (1,))]
    view = drawing.views["all"]
    assert [axis.ticktext for axis in view.select_yaxes()] == [("5",)] * 3 + [("7", "5")] * 2
    ends = {
        (trace.yaxis, trace.marker.symbol): dict(zip(trace.y, zip(trace.x, trace.customdata, strict=True), strict=True))
        for trace in traces(drawing, "scatter") if str(trace.marker.symbol).startswith("triangle")
    }  # fmt: skip
    for site, dim, row, axis in (("resid_post", 7, 0, "5"), ("resid_post", 5, 1, "5"), ("mlp_norm", 5, 0, "3")):
        ticks = view.layout[f"xaxis{axis}"]
        values = [float(text.replace("−", "-").replace(",", "")) for text in ticks.ticktext]
        for side, x in zip(("left-open", "right"), plan.reach(site, dim, 3), strict=True):
            place, said = ends[f"y{axis}", f"triangle-{side}"][row]
            assert list(said) == [dim, number(x)]
            # Left of 0 lies left of it, and every tick is on the right side of the mark.
            assert (place > 0) - (place < 0) == (x > 0) - (x < 0)
            known = zip(ticks.tickvals, values, strict=True)
            assert all((place > at) == (x > value) for at, value in known if value != pytest.approx(x))
        assert ticks.range[0] == -ticks.range[1]
    low, high = plan.reach("resid_post", 7, 3)
    assert axes(drawing)[0] == axes(drawing)[1]
    without = [note.text for note in drawing.views["without_first"].layout.annotations]
    assert "no such dimension has a hit" in without  # the massive ones are at the first position
    row = drawing.data.filter(population="all", rule="massive", dim=7).row(0, named=True)
    assert (row["positive"], row["negative"], row["site"], row["low"], row["high"]) == (5, 15, "resid_post", low, high)


def test_many_dims_are_cut_and_the_cut_is_said(tmp_path):
    run = FakeRun(outliers=tuple(range(40)), massive=()).write(tmp_path / "many")
    drawing = signs(read(run, "dims"), read(run, "emergence"), SITES, POPULATIONS)
    assert "Shown: the 30 with the largest |x| of 40 dettmers dimensions." in drawing.text
    assert drawing.data["dim"].n_unique() == 30 and drawing.data["dim"].min() == 10


@pytest.mark.parametrize(
    ("table", "draw", "why"),
    [
        (
            layers_schema.DISTRIBUTION,
            lambda empty: distribution(empty, LAYERS, {}, POPULATIONS),
            "this run has no site",
        ),
        (layers_schema.LAYERS, lambda empty: kurtosis(empty, LAYERS, POPULATIONS), "this run has no site"),
        (dims_schema.POSITIONS, lambda empty: positions(empty, hit_rules(RULES), POPULATIONS), "this run has no site"),
        (
            dims_schema.DIMS,
            lambda empty: signs(empty, pl.DataFrame(schema=emergence_schema.EMERGENCE.schema), SITES, POPULATIONS),
            "no dimension is selected by a rule in any population",
        ),
    ],
)
def test_nothing_to_draw_is_said(table, draw, why):
    drawing = draw(pl.DataFrame(schema=table.schema))
    assert drawing.text.startswith(f"Nothing is drawn: {why}") and not drawing.views


def test_a_population_without_positions_and_one_layer(tmp_path):
    run = FakeRun(rest=False, layers=1).write(tmp_path / "run")
    drawings = [
        distribution(read(run, "distribution"), 1, THRESHOLDS, POPULATIONS),
        kurtosis(read(run, "layers"), 1, POPULATIONS),
        positions(read(run, "positions"), hit_rules(RULES), POPULATIONS),
    ]
    for drawing in drawings:
        notes = [note.text for note in drawing.views["without_first"].layout.annotations]
        assert notes.count("no such tokens in this run") == 3
        assert "no such tokens in this run" not in [note.text for note in drawing.views["all"].layout.annotations]
