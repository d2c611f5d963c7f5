"""What the figures of the surface and of massive tokens draw, against the tables."""

import numpy as np
import polars as pl
import pytest

from fake_run import POPULATIONS, FakeRun
from outlier_features.dims.dims_schema import MASSIVE
from outlier_features.figures.massive_tokens import MOST, massive_tokens, tokens_of
from outlier_features.figures.surface import LINES, PEAKS, POINTS, surface_figures, token_label
from outlier_features.populations import EXCLUDED, REST
from outlier_features.surface.record_surface import pool_surface
from outlier_features.surface.surface_grid import SurfaceGrid
from outlier_features.surface.surface_schema import SURFACE

T, H = 300, 700


def table(x, parts, selected=(), text="a"):
    where = [pl.lit("resid_post").alias("site"), pl.lit(3).alias("layer"), pl.lit(2).alias("sequence")]
    alone = pl.col("token_first") == pl.col("token_last")
    cells = pool_surface(x.astype(np.float32), parts, selected).with_columns(
        *where, token_text=pl.when(alone).then(pl.lit(text))
    )
    return cells.select(pl.col(name).cast(dtype) for name, dtype in SURFACE.schema.items())


@pytest.fixture(scope="module")
def planted():
    x = np.random.default_rng(0).standard_normal((T, H)) * 0.1
    x[0, 507], x[0, 3], x[150, 507], x[299, 600] = 2000, -900, -40, 30
    parts = np.full(T, REST, np.uint8)
    parts[0] = EXCLUDED
    return x, table(x, parts, [507, 20])


def test_a_coarser_grid_keeps_the_largest_of_every_block(planted):
    x, surface = planted
    for population, first in (("all", 0), ("without_first", 1)):
        grid = SurfaceGrid.of(surface, population).coarser(LINES, POINTS)
        assert grid.value.shape[0] <= LINES and grid.value.shape[1] <= POINTS
        assert grid.tokens[0, 0] == first and grid.tokens[-1, 1] == T - 1 and grid.dims[-1, 1] == H - 1
        for i, (a, b) in enumerate(grid.tokens):
            for j, (c, d) in enumerate(grid.dims):
                block = np.abs(x[a : b + 1, c : d + 1]).astype(np.float32)
                assert grid.size[i, j] == block.max() and x[grid.token[i, j], grid.dim[i, j]] == pytest.approx(
                    grid.value[i, j]
                )
        assert {507, 20} <= set(grid.dims[grid.selected, 0])


def test_the_surface_draws_extremes_at_their_place_and_height(planted):
    _, surface = planted
    drawing = surface_figures(surface, POPULATIONS)[0]
    assert drawing.sites == "resid_post, layer 3, sequence 2"
    assert drawing.finding == (
        "On resid_post of layer 3, x is 2,000 in dimension 507 at position 0 of sequence 2 (“a”); "
        "at the other positions |x| is at most 40."
    )
    figure = drawing.views["all"]
    peaks = [(trace.x[0], trace.y[0]) for trace in figure.data if trace.mode == "markers"]
    assert peaks[0] == (507, 2000) and len(peaks) <= PEAKS  # the first line is not moved
    notes = [note.text for note in figure.layout.annotations]
    assert "“a” 0<br>dim 507: 2,000" in notes and "“a” 0<br>dim 3: -900" in notes
    filled = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(filled) <= LINES and all(trace.fillcolor == "white" for trace in filled)
    front = filled[-1]  # drawn last, over the others
    assert (507, 2000) in zip(front.x, front.y, strict=True) and front.line.color != filled[0].line.color
    rest = drawing.views["without_first"]
    notes = [note.text for note in rest.layout.annotations]
    assert "“a” 150<br>dim 507: -40" in notes and not any("2,000" in note for note in notes)
    assert max(rest.layout.yaxis.tickvals) == 40 < max(figure.layout.yaxis.tickvals)
    depth = rest.layout.yaxis.range[1]
    assert all(max(trace.y) < depth for trace in rest.data if trace.fill)
    drawn = drawing.data.filter(population="without_first", token=150, dim=507)
    assert drawn["value"].to_list() == [-40]


def test_the_map_shows_every_row_and_column(planted):
    x, surface = planted
    drawing = surface_figures(surface, POPULATIONS)[1]
    for population, first in (("all", 0), ("without_first", 1)):
        figure = drawing.views[population]
        heat = figure.data[0]
        grid = SurfaceGrid.of(surface, population).coarser(96, 192)
        np.testing.assert_allclose(10 ** np.array(heat.z, float), grid.size, rtol=0.0116)  # two decimals
        where = [*grid.dims[:, 0]].index(507), int(np.flatnonzero(grid.tokens[:, 0] == 150)[0])
        assert heat.customdata[where[1]][where[0]] == ["“a” 150", 507, "-40"]  # what is under a hover, by name
        last = grid.dims.tolist().index([600, 600])
        assert heat.customdata[-1][last] == ["“a” 299", 600, "30"]
        by_dim = next(trace for trace in figure.data if trace.yaxis == "y" and trace.mode == "lines")
        assert max(by_dim.y) == np.abs(x[first:]).max()
        assert "507" in figure.layout.xaxis3.ticktext
        assert figure.layout.yaxis.range == drawing.views["all"].layout.yaxis.range
    assert "“a” 0" in drawing.views["all"].layout.yaxis3.ticktext
    assert drawing.finding == (
        "A tenth of the largest |x|, 200, is reached in 2 of 700 dimensions and at 1 of 300 positions "
        "(resid_post, layer 3, sequence 2)."
    )
    marginal = drawing.data.filter(population="all").group_by("dim").agg(pl.col("value").abs().max())
    assert marginal.filter(dim=507)["value"].to_list() == [2000]


def test_hostile_text_is_shown_as_text():
    assert token_label({4: "<b>&\n\u202e"}, 4) == "“&lt;b&gt;&amp;⏎‹U+202E›” 4"
    assert token_label({4: "x" * 99}, 4) == f"“{'x' * 13}…” 4" and token_label({}, 4) == "position 4"


def test_nothing_to_draw_is_said():
    for drawing in surface_figures(pl.DataFrame(schema=SURFACE.schema), ["all"]):
        assert not drawing.views and drawing.text == "Nothing is drawn: this run has no site."


def test_zeros_one_token_and_an_empty_population():
    for x in (np.zeros((4, 6)), np.ones((1, 6))):
        parts = np.full(len(x), EXCLUDED, np.uint8)
        for drawing in surface_figures(table(x, parts), POPULATIONS):
            assert list(drawing.views) == list(POPULATIONS)
            notes = [note.text for note in drawing.views["without_first"].layout.annotations]
            assert "no such tokens in this run" in notes


def rows(*found):
    given = [
        {"rule": "massive", "site": "resid_post", "sequence": sequence, "layer": layer, "token": token, "dim": 1,
         "value": value, "median": 1.0, "ratio": abs(value), "massive_all": True, "median_without_first": 1.0,
         "ratio_without_first": None, "massive_without_first": token > 0, "excluded": token == 0, "token_id": 1,
         "token_text": text}
        for sequence, layer, token, value, text in found
    ]  # fmt: skip
    return pl.DataFrame(given, schema=MASSIVE.schema)


MASSIVE_SITES = {"massive": ["resid_post"]}


def test_tokens_are_counted_by_text_and_part():
    massive = rows(
        (0, 1, 0, -500, "a"), (1, 1, 0, 400, "a"), (0, 1, 5, 300, "a"), (0, 2, 5, 310, "a"), (0, 1, 6, 9, None)
    )
    found = tokens_of(massive, "all").select(
        "token_text", "position", "excluded", "activations", "positions", "max_abs"
    )
    assert found.rows() == [
        ("a", None, True, 2, 2, 500.0), ("a", None, False, 2, 1, 310.0), (None, 6, False, 1, 1, 9.0)
    ]  # fmt: skip
    drawing = massive_tokens(massive, MASSIVE_SITES, POPULATIONS)
    figure = drawing.views["all"]
    bars = {
        (x, y)
        for trace in figure.data
        if trace.y[0] is not None and trace.xaxis == "x"
        for x, y in zip(trace.x, trace.y, strict=True)
    }
    assert bars == {(2, 0), (2, 1), (1, 2)}
    assert list(figure.layout.yaxis.ticktext) == ["“a”", "“a”", "position 6"]
    without = drawing.views["without_first"]
    assert list(without.layout.yaxis.ticktext) == ["“a”", "position 6"]
    assert without.layout.xaxis2.range == figure.layout.xaxis2.range
    assert drawing.data.filter(population="all")["activations"].sum() == 5


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([(n, 1, 0, 500, text) for n, text in enumerate("abca")],
         "All 4 massive activations (rule massive, resid_post) lie at position 0, in 4 sequences, whatever its token "
         "(3 texts)."),
        ([(0, 1, 0, 500, "<s>")],
         "The 1 massive activation (rule massive, resid_post) lies at position 0, in 1 sequence."),
        ([(0, 1, 0, 500, "<s>"), (0, 1, 4, 300, "."), (0, 2, 4, 300, "."), (0, 1, 6, 900, "a")],
         "Of 4 massive activations (rule massive, resid_post), 25 % lie at first positions or special tokens; of the "
         "other 3, most at “.” (2)."),
        ([(0, 1, 4, 300, None)],
         "Of 1 massive activation (rule massive, resid_post) none lies at a first position or special token; most at "
         "position 4 (1)."),
    ],
)  # fmt: skip
def test_whether_the_position_or_the_token_matters_is_said(found, said):
    drawing = massive_tokens(rows(*found), MASSIVE_SITES, ["all"])
    assert drawing.finding == said


def test_position_0_is_one_bar_whatever_its_token():
    massive = rows(*((n, 1, 0, 500 + n, f"w{n}") for n in range(16)), (0, 1, 7, 300, "w3"))
    [first, other] = massive_tokens(massive, MASSIVE_SITES, ["all"]).data.to_dicts()
    assert (first["token_text"], first["position"], first["texts"], first["activations"]) == (None, 0, 16, 16)
    assert (other["token_text"], other["position"], other["max_abs"]) == ("w3", None, 300)
    figure = massive_tokens(massive, MASSIVE_SITES, ["all"]).views["all"]
    assert list(figure.layout.yaxis.ticktext) == ["position 0, 16 texts", "“w3”"]
    hovers = {hover for trace in figure.data if trace.customdata is not None for hover in map(tuple, trace.customdata)}
    assert ("1", "1 position", "1 dimension") in hovers and ("16", "16 positions", "1 dimension") in hovers


def test_many_tokens_are_capped_and_hostile_ones_escaped():
    drawing = massive_tokens(rows(*((0, 1, n, 1000 - n, f"<i>{n}") for n in range(40))), MASSIVE_SITES, ["all"])
    labels = drawing.views["all"].layout.yaxis.ticktext
    assert len(labels) == MOST and labels[0] == "“&lt;i&gt;0”"
    assert f"Shown: the {MOST} with the largest |x| of 40 token texts." in drawing.text


def test_without_massive_activations_nothing_is_drawn():
    empty = pl.DataFrame(schema=MASSIVE.schema)
    assert massive_tokens(empty, MASSIVE_SITES, ["all"]).text.endswith("no massive activations in any population.")
    assert "was not applied" in massive_tokens(empty, {"massive": []}, ["all"]).text


def test_the_fake_runs_surface_is_whole(tmp_path):
    run = FakeRun()
    surface = pl.read_parquet(run.write(tmp_path / "run") / "surface.parquet")
    grid = SurfaceGrid.of(surface, "all")
    assert grid.value.shape == (6, 64) and grid.value[0, 7] == -2007 and grid.texts[1] == " cat"
