"""A figure's own page in a browser: drawn from the files beside it, in the population that its address asks for."""

from pathlib import Path

import pytest

from fake_run import FIGURES, FakeRun
from outlier_features.draw_figures import draw_figures
from reading import MARK, SCRIPT, Reader

TEMPLATE = Path(__file__).parents[2] / "workflow/report/figures.html.j2"


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    hostile = FakeRun(origin=SCRIPT, pieces=(SCRIPT, f"<img src=x onerror='{MARK}'>", "\u2028", "`${1}"))
    draw_figures(hostile.write(folder / "tiny/text"), TEMPLATE, folder / "figures", formats=[], width_mm=85)
    return folder / "figures"


@pytest.fixture(scope="module")
def reader(browser, figures):
    opened = Reader(browser, figures / "index.html", 400)
    yield opened
    assert opened.complaints == []
    assert {url.split(":")[0] for url in opened.requests} <= {"file", "data", "blob"}
    opened.context.close()


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_and_nothing_hostile_runs(reader, figures, name):
    reader.page.goto((figures / f"{name}.html").as_uri())
    reader.page.locator('#plot[data-state="drawn all"]').wait_for()
    assert reader.page.locator("#plot .main-svg").count() >= 2
    assert reader.page.evaluate("document.documentElement.dataset.hostile") is None


def test_the_address_names_the_population(reader, figures):
    reader.page.goto(f"{(figures / 'shares.html').as_uri()}#without_first")
    reader.page.locator('#plot[data-state="drawn without_first"]').wait_for()
