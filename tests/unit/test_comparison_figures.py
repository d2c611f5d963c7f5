"""Figures that compare runs: points are the table's, names cover nothing, published points are hollow."""

import itertools
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fake_run import FakeRun
from outlier_features.compare.compare_models import compare_models
from outlier_features.compare.models_schema import MODELS
from outlier_features.compare.published_numbers import published_numbers
from outlier_features.figures.compared_runs import Compared
from outlier_features.figures.comparison_figures import comparison_figures
from outlier_features.figures.point_names import LETTER, LINE, place_names
from outlier_features.figures.run_points import log_axis_of, parameters_in_short
from outlier_features.figures.style import BLUE, VERMILLION
from outlier_features.files.artifacts import read_json
from outlier_features.files.tables import read_table
from outlier_features.report.draw_comparison import draw_comparison
from outlier_features.run.verify_artifacts import verify_artifacts
from outlier_features.wording import percent

PUBLISHED = Path(__file__).parents[2] / "workflow/published"
RUNS = (
    FakeRun(model="small", parameters=10**8, sites_share=0.3, union=0.5, spread=0.02, sequences=4),
    FakeRun(model="large", parameters=10**9, sites_share=0.5, union=0.7, spread=0.05, nll=7.0, sequences=4, layers=8),
    FakeRun(model="moe", parameters=2 * 10**9, experts=4, sites_share=0.4, union=0.2, nll=8.0, sequences=4),
    FakeRun(
        model="encoder",
        missing={"loss": "it has none", "attention_maps": "so has it"},
        parameters=10**7,
        outliers=(),
        sites_share=0.1,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    paths = [run.write(folder / run.model / "text") for run in RUNS]
    (folder / "comparison").mkdir()
    compare_models(paths, PUBLISHED, folder / "comparison/models.parquet")
    return folder


@pytest.fixture(scope="module")
def models(results):
    return read_table(results / "comparison/models.parquet", MODELS)[0]


@pytest.fixture(scope="module")
def drawings(results, models):
    paths = [results / run.model / "text" for run in RUNS]
    layers = {
        f"{run.model}/text": pl.read_parquet(path / "layers.parquet") for run, path in zip(RUNS, paths, strict=True)
    }
    summaries = [read_json(path / "summary.json") for path in paths]
    sinks = {
        f"{run.model}/text": pl.read_parquet(path / "sinks.parquet") for run, path in zip(RUNS, paths, strict=True)
    }
    del sinks["encoder/text"]
    compared = Compared.of(models, summaries, layers, sinks, published_numbers(PUBLISHED))
    return {drawing.name: drawing for drawing in comparison_figures(compared)}


def points(drawing, population, *, published, colour=None):
    """Name, x, y, and the ends of the interval, of the points that are drawn in every panel."""
    found = set()
    for trace in drawing.views[population].data:
        hollow = str(trace.marker.symbol).endswith("-open")
        if trace.text is None or hollow != published or colour not in (None, trace.marker.color):
            continue
        for n, name in enumerate(trace.text):
            ends = (
                (None, None)
                if published
                else (trace.y[n] - trace.error_y.arrayminus[n], trace.y[n] + trace.error_y.array[n])
            )
            found.add((name, trace.x[n], trace.y[n], *ends))
    return found


def test_a_run_without_a_share_is_named(drawings, models):
    column = "sweep_layer_share_mean"
    drawn = models.filter(pl.col(column).is_not_null(), rule="dettmers")["model"].unique()
    assert set(drawn) == {"small", "large", "moe"}
    note = drawings["shares-by-parameters-mean"].text
    assert "encoder (rule dettmers" in note and not any(f"{name} (rule dettmers" in note for name in drawn)


@pytest.mark.parametrize("across", ["parameters", "active_parameters", "perplexity", "bits_per_byte"])
@pytest.mark.parametrize("how", ["mean", "median"])
def test_shares_are_those_of_the_table(drawings, models, across, how):
    drawing = drawings[f"shares-by-{across.replace('_', '-')}-{how}"]
    for population, (share, colour) in itertools.product(
        ("all", "without_first"), (("layer_share", BLUE), ("position_share", VERMILLION))
    ):
        name = f"sweep_{share}_{how}"
        rows = models.filter(
            pl.col(across).is_not_null(), pl.col(name).is_not_null(), rule="dettmers", population=population
        )
        expected = {
            row["model"]: (
                row[across],
                row[name],
                min(row[name], row[f"{name}_low"]),
                max(row[name], row[f"{name}_high"]),
            )
            for row in rows.iter_rows(named=True)
        }
        drawn = {one[0]: one[1:] for one in points(drawing, population, published=False, colour=colour)}
        assert drawn.keys() == expected.keys() and {"small", "large", "moe"} <= drawn.keys()
        for model, numbers in drawn.items():
            assert numbers == pytest.approx(expected[model])
    known = models.filter(pl.col(across) > 0, rule="dettmers", population="all").drop_nulls(f"sweep_layer_share_{how}")
    least, most = (known.sort(f"sweep_layer_share_{how}")[f"sweep_layer_share_{how}"][end] for end in (0, -1))
    assert f"layer share from {percent(least)} (" in drawing.finding and f" to {percent(most)} (" in drawing.finding
    assert len(drawing.finding.split()) <= 40
    figure = drawing.views["all"]
    assert list(figure.layout.yaxis.range) == [-0.05, 1.05] and figure.layout.xaxis.type == "log"
    # Dense models and mixtures of experts are apart.
    panels = {name: trace.xaxis for trace in figure.data if trace.text is not None for name in trace.text}
    assert panels["small"] == panels["large"] != panels["moe"]


def test_published_points_are_hollow_and_of_population_all(drawings):
    numbers = published_numbers(PUBLISHED)
    values = numbers.filter(pl.col("file").is_in(["moe_sweep", "qwen3_dense"]))
    wide = {model: dict(rows.select("column", "value").iter_rows()) for (model,), rows in values.group_by("model")}
    drawn = {one[:3] for one in points(drawings["shares-by-parameters-mean"], "all", published=True, colour=BLUE)}
    assert drawn == {
        (model, row["parameters"], row["sweep_layer_share_mean"]) for model, row in wide.items() if "parameters" in row
    }
    assert len(drawn) == 12
    assert not points(drawings["shares-by-parameters-mean"], "without_first", published=True)
    table4 = points(drawings["llm-int8-figure-4"], "all", published=True)
    assert ("FSEQ 13B", 12.5, 7.0, None, None) in table4  # as Table 4 prints it


def test_figures_of_llm_int8_are_those_of_the_table(drawings, models):
    drawn = {one[:3] for one in points(drawings["llm-int8-figure-3"], "all", published=False, colour=BLUE)}
    rows = models.filter(pl.col("layer_share_mean").is_not_null(), rule="dettmers", population="all")
    assert drawn == {
        *rows.select("model", "parameters", "layer_share_mean").iter_rows(),
        *rows.drop_nulls("perplexity").select("model", "perplexity", "layer_share_mean").iter_rows(),
    }
    drawn = {one[:3] for one in points(drawings["llm-int8-figure-4"], "all", published=False)}
    rows = models.filter(pl.col("perplexity").is_not_null(), rule="dettmers", population="all")
    assert drawn == {
        *rows.select("model", "perplexity", "magnitude_median").iter_rows(),
        *rows.select("model", "perplexity", pl.col("dims").cast(pl.Float64)).iter_rows(),
    }
    assert "Not drawn: 1 run without such a number." in drawings["llm-int8-figure-4"].text


def test_runs_over_relative_depth_have_a_line_each(results, drawings):
    """Magnitude, kurtosis, hits and sinks of every run, at the depth of its own model."""
    drawing = drawings["relative-depth"]
    for population in ("all", "without_first"):
        lines = {(trace.yaxis or "y", trace.name): trace for trace in drawing.views[population].data if trace.mode}
        for run in RUNS:
            folder = results / run.model / "text"
            layers = pl.read_parquet(folder / "layers.parquet").filter(population=population).sort("layer")
            stream = layers.filter(site="resid_post")
            depth = [(layer + 1) / run.layers for layer in range(run.layers)]
            norms = layers.filter(pl.col("site").is_in(["attn_norm", "mlp_norm"]))
            by_layer = norms.group_by("layer", maintain_order=True)
            most = [max(here["positions_hit"] / here["positions"]) for _, here in by_layer]
            expected = {
                "y": stream["top1"].to_list(), "y2": (stream["top1"] / stream["median"]).to_list(),
                "y3": np.arcsinh(stream["kurtosis_flat_excess"]).to_list(), "y4": most,
            }  # fmt: skip
            for axis, values in expected.items():
                assert list(lines[axis, run.model].x) == depth
                assert list(lines[axis, run.model].y) == pytest.approx(values)
            if run.model == "encoder":
                assert not lines["y5", "encoder"].x
            else:
                sinks = pl.read_parquet(folder / "sinks.parquet").filter(token=0)
                rates = sinks.group_by("layer").agg(pl.col("sink_rate").mean()).sort("layer")
                assert list(lines["y5", run.model].y) == pytest.approx(rates["sink_rate"].to_list())
    ratios = {}
    for run in RUNS:
        here = pl.read_parquet(results / run.model / "text/layers.parquet").filter(site="resid_post", population="all")
        ratios[run.model] = max(here["top1"] / here["median"])
    best = max(ratios.values())
    assert f"{best:,.4g} times at" in drawing.finding and "1 more below" in drawing.finding


@pytest.mark.parametrize("count", [2, 12, 24])
def test_no_name_covers_another_or_a_point(count):
    random = np.random.default_rng(count)
    width, height = 400, 300
    places = [(float(x), float(y)) for x, y in random.uniform((10, 10), (390, 290), (2 * count, 2))]
    names = [(f"some-model-{n}", (n, n + count)) for n in range(count)]
    placed = place_names(names, places, [], width, height)
    boxes = []
    for one in placed:
        x, y = places[one.point][0] + one.right, places[one.point][1] + one.up
        half = len(one.name) * LETTER / 2
        boxes.append((x - half, x + half, y - LINE / 2, y + LINE / 2))
        assert one.point in dict(names)[one.name]
        assert boxes[-1][0] >= 0 and boxes[-1][1] <= width and boxes[-1][2] >= 0 and boxes[-1][3] <= height
        assert not any(boxes[-1][0] < px < boxes[-1][1] and boxes[-1][2] < py < boxes[-1][3] for px, py in places)
    for one, other in itertools.combinations(boxes, 2):
        assert one[1] <= other[0] or other[1] <= one[0] or one[3] <= other[2] or other[3] <= one[2]
    assert len(placed) >= min(count, 12)


def test_axes_hold_their_values_and_have_few_ticks():
    for values in ([3e8], [1e6, 2e12], [7.2, 9.9], [5.0, 31.0], []):
        axis = log_axis_of("", values, parameters_in_short)
        assert 1 <= len(axis.ticks) <= 6 and all(0 < axis.place(value) < 1 for value in values)
        assert all(axis.low <= math.log10(tick) <= axis.high for tick in axis.ticks)
    assert [parameters_in_short(value) for value in (135e6, 6.9e9, 12e3, 7)] == ["135M", "6.9B", "12k", "7"]


def test_the_figures_are_files_with_their_data(results, drawings):
    runs = [results / run.model / "text" for run in RUNS]
    files = results / "comparison/figures"
    draw_comparison(runs, results / "comparison/models.parquet", PUBLISHED, files, formats=[], width_mm=85)
    assert {path.stem for path in files.glob("*.html")} == {"index", *drawings}
    for drawing in drawings.values():
        assert pl.read_csv(files / f"{drawing.name}.csv", schema=drawing.data.schema).equals(drawing.data)
    assert [verdict.path for verdict in verify_artifacts([results]) if verdict.found] == []
