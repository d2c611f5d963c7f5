"""A figure's own page in a browser: drawn from the files beside it, in the population that its address asks for."""

import re
from pathlib import Path

import pytest
from test_report import CHROMIUM, MARK, SCRIPT, browse

from fake_run import FIGURES, FakeRun
from outlier_features.draw_figures import draw_figures

TEMPLATE = Path(__file__).parents[2] / "workflow/report/figures.html.j2"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser (chromium)")


class Address(type(Path())):
    """A page with what stands behind # in its address."""

    def as_uri(self):
        page, _, population = str(self).partition("#")
        return Path(page).as_uri() + ("#" + population if population else "")


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    hostile = FakeRun(origin=SCRIPT, pieces=(SCRIPT, f"<img src=x onerror='{MARK}'>", "\u2028", "`${1}"))
    draw_figures(hostile.write(folder / "tiny/text"), TEMPLATE, folder / "figures", formats=[], width_mm=85)
    return folder / "figures"


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_and_nothing_hostile_runs(figures, tmp_path, name):
    dom, console = browse(figures / f"{name}.html", tmp_path / "profile", "--window-size=400,1200", "--dump-dom")
    assert re.search(r'id="plot"[^>]*data-state="drawn all"', dom) and dom.count('class="main-svg"') >= 2
    assert "data-hostile" not in re.search("<html[^>]*>", dom)[0] and console == ""


def test_the_address_names_the_population(figures, tmp_path):
    page = Address(f"{figures}/shares.html#without_first")
    dom, console = browse(page, tmp_path / "profile", "--window-size=900,1200", "--dump-dom")
    assert 'data-state="drawn without_first"' in dom and console == ""
