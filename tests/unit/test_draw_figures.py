"""Figures on disk: pages that share one plotly.js, the drawn data, and images of a paper's size."""

import re
import shutil
from html import unescape

import plotly.graph_objects as go
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from fake_run import FIGURES, FakeRun
from outlier_features.errors import InputError
from outlier_features.figures.images import for_paper, paper_pixels, titled, write_images
from outlier_features.figures.run_figures import run_figures
from outlier_features.files.artifacts import require_page
from outlier_features.report.draw_figures import draw_figures
from outlier_features.run.verify_artifacts import verify_artifacts
from outlier_features.summary.report_run import Run

SCRIPT = "</script><script>alert(1)</script>"
needs_browser = pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser (chromium)")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return FakeRun(origin=SCRIPT, pieces=(SCRIPT, " b", " <i>c", "&amp;")).write(folder / "tiny/text")


@pytest.fixture(scope="module")
def figures(run):
    draw_figures(run, run / "figures", formats=[], width_mm=85)
    return run / "figures"


def test_every_figure_has_a_page_and_the_index_names_them(run, figures):
    index = (figures / "index.html").read_text()
    assert {path.stem for path in figures.glob("*.html")} == {"index", *FIGURES}
    assert re.findall(r'<h2><a href="([^"]+)\.html">', index) == list(FIGURES)
    assert [path.name for path in (figures / "page").iterdir()] == ["plotly-cartesian.min.js"]
    views = {}
    for drawing in run_figures(Run.read(run)):
        page = (figures / f"{drawing.name}.html").read_text()
        views[drawing.name] = {path.stem for path in (figures / "data" / drawing.name).iterdir()}
        assert views[drawing.name] == {*drawing.views}
        assert len(re.findall('<input type="radio"', page)) == (len(drawing.views) if len(drawing.views) > 1 else 0)
        assert page.count('data-plotly="page/plotly-cartesian.min.js"') == 1
        require_page(figures / f"{drawing.name}.html")
    assert index.count('class="plot" data-still') == len(FIGURES)


def test_a_figure_that_is_not_drawn_has_no_page(tmp_path):
    run = FakeRun(missing={"origin": "`skip` names origin"}).write(tmp_path / "tiny/text")
    draw_figures(run, run / "figures", formats=[], width_mm=85)
    index = (run / "figures/index.html").read_text()
    assert "The tracing of massive activations to their origin is turned off" in index
    assert not (run / "figures/lifecycle.html").exists() and 'href="lifecycle.html"' not in index


def test_nothing_comes_from_elsewhere_and_texts_are_data(figures):
    for path in figures.glob("*.html"):
        page = path.read_text()
        assert not re.search(r'(src|href)="(https?:|//)', page)
        assert SCRIPT not in page and "alert(1)</script>" not in page


def test_the_drawn_data_are_beside_the_figure(run, figures):
    drawings = [drawing for drawing in run_figures(Run.read(run)) if not drawing.data.is_empty()]
    assert len(drawings) > 5
    assert {path.stem for path in figures.glob("*.csv")} == {drawing.name for drawing in drawings}
    for drawing in drawings:
        if pl.List not in {type(dtype) for dtype in drawing.data.schema.values()}:
            back = pl.read_csv(figures / f"{drawing.name}.csv", schema=drawing.data.schema)
            assert_frame_equal(back, drawing.data, check_exact=True)


def test_verify_knows_the_pages(run, figures):
    places = [run.parent.parent]
    names = {verdict.path.name for verdict in verify_artifacts(places) if verdict.path.parent == figures}
    assert {"index.html", *(f"{name}.html" for name in FIGURES)} <= names
    whole = (figures / "rules.html").read_text()
    (figures / "rules.html").write_text(whole.replace("Population", "Populace", 1))
    try:
        bad = {one.path.name for one in verify_artifacts(places) if one.found and one.path.parent == figures}
        assert bad == {"rules.html"}
    finally:
        (figures / "rules.html").write_text(whole)


@pytest.mark.parametrize(
    ("width_mm", "min_width", "mm"), [(85, 340, 85), (85, 980, 178), (178, 340, 178), (200, 980, 200)]
)
def test_fonts_are_of_7_to_9_points_at_the_width_asked_for(width_mm, min_width, mm):
    pixels = paper_pixels(width_mm, min_width)
    points = mm / 25.4 * 72 / pixels  # of a pixel of the layout
    for size in (11, 12, 13):  # of ticks, axes and panels
        assert 7 <= size * points <= 9


def test_a_menu_leaves_its_choice_on_paper():
    buttons = [{"label": "first", "method": "skip"}, {"label": "second", "method": "skip"}]
    figure = go.Figure(layout={"updatemenus": [{"buttons": buttons, "active": 1, "pad": {"l": -9}}]})
    still = for_paper(figure)
    assert not still.layout.updatemenus and [(one.text, one.xshift) for one in still.layout.annotations] == [
        ("second", -9)
    ]
    assert figure.layout.updatemenus and not figure.layout.annotations


@needs_browser
def test_a_disk_that_refuses_an_image_is_not_blamed_on_the_browser(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        write_images([(tmp_path / "file/a.svg", go.Figure(layout={"height": 100}), 300)], "here")


@needs_browser
def test_images_have_the_size_and_the_marks_of_the_figure(tmp_path):
    figure = go.Figure(go.Scatter(x=[1, 2, 3], y=[3, 1, 2], mode="markers", marker={"color": "#D55E00"}))
    figure.update_layout(height=216, template="none")
    pixels = paper_pixels(85, 340)
    write_images([(tmp_path / f"a.{form}", figure, pixels) for form in ("svg", "pdf", "png")], "here")
    svg = (tmp_path / "a.svg").read_text()
    width, height = (
        float(re.search(rf'<svg[^>]* {name}="([\d.]+)"', svg)[1]) / 96 * 25.4 for name in ("width", "height")
    )
    assert width == pytest.approx(85, abs=0.2) and height == pytest.approx(216 * 8 / 9 / 96 * 25.4, abs=0.2)
    assert svg.count('class="point"') == 3
    box = re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)", (tmp_path / "a.pdf").read_bytes())
    assert float(box[1]) / 72 * 25.4 == pytest.approx(85, abs=0.3)
    png = (tmp_path / "a.png").read_bytes()
    assert png[:4] == b"\x89PNG" and int.from_bytes(png[16:20], "big") == 3 * pixels


@needs_browser
def test_images_stand_beside_the_pages(run, tmp_path):
    draw_figures(run, tmp_path / "figures", formats=["svg"], width_mm=85)
    expected = {f"{d.name}.{population}.svg" for d in run_figures(Run.read(run)) for population in d.views}
    assert {path.name for path in (tmp_path / "figures").glob("*.svg")} == expected
    for drawing in run_figures(Run.read(run)):  # an image without its page says what it is of
        for population in drawing.views:
            svg = (tmp_path / f"figures/{drawing.name}.{population}.svg").read_text()
            title = unescape(
                " ".join(re.findall(r"<tspan[^>]*>([^<]*)", re.search(r'class="gtitle".*?</text>', svg, re.S)[0]))
            )
            assert title.split() == [*drawing.title.split(), *["tiny", "on", "text"]]
    page = (tmp_path / "figures/rules.html").read_text()
    assert re.findall(r'<a href="([^"]+\.svg)">', page) == ["rules.all.svg", "rules.without_first.svg"]


def test_a_title_takes_nothing_from_the_figure():
    bar = {"yref": "container", "y": 0.75}
    layout = {"height": 200, "margin": {"t": 50}, "coloraxis": {"colorbar": bar}}
    figure = go.Figure(go.Heatmap(z=[[1]], colorbar={"yref": "container", "y": 0.0}), layout=layout)
    whole = titled(figure, "A title of more than one line", "model on <corpus>", 120)
    more = whole.layout.height - 200
    assert more == whole.layout.margin.t - 50 > 0
    assert 0 < (1 - whole.layout.title.y) * whole.layout.height < more
    assert "model on" in whole.layout.title.text and "<corpus>" not in whole.layout.title.text
    # Bars that are placed in the whole image stay where they were, from its lower end.
    assert whole.layout.coloraxis.colorbar.y * whole.layout.height == pytest.approx(0.75 * 200)
    assert whole.data[0].colorbar.y == 0 and figure.layout.height == 200


def test_without_a_chrome_one_sentence_says_how_to_get_one(run, tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "chrome"))
    with pytest.raises(
        InputError, match=r"figures\.formats asks for svg, which needs a Chrome .*`apt-get install chromium`"
    ):
        draw_figures(run, tmp_path / "figures", formats=["svg"], width_mm=85)
    assert list(tmp_path.iterdir()) == []


def test_without_kaleido_one_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "kaleido", None)  # as Python marks what cannot be imported
    with pytest.raises(InputError, match=r"here asks for pdf, which needs the package kaleido: pip install"):
        write_images([(tmp_path / "a.pdf", go.Figure(), 300)], "here")
