"""A figure's own page in a browser: drawn from the files beside it, in the population that its reader asks for."""

import pytest

from fake_run import FakeRun
from outlier_features.figures.run_figures import run_figures
from outlier_features.populations import population_title
from outlier_features.report.draw_figures import draw_figures
from outlier_features.summary.report_run import Run
from reading import MARK, SCRIPT, Reader


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    hostile = FakeRun(origin=SCRIPT, pieces=(SCRIPT, f"<img src=x onerror='{MARK}'>", "\u2028", "`${1}"))
    run = hostile.write(tmp_path_factory.mktemp("results") / "tiny/text")
    draw_figures(run, run / "figures", formats=[], width_mm=85)
    return run


@pytest.fixture
def reader(browser, run):
    opened = Reader(browser, run / "figures/index.html", 400)
    yield opened
    assert opened.complaints == []
    assert all(url.startswith(((run / "figures").as_uri(), "data:", "blob:")) for url in opened.requests)
    opened.context.close()


def test_every_figure_is_drawn_in_every_population_and_nothing_hostile_runs(reader, run):
    drawings = [drawing for drawing in run_figures(Run.read(run)) if drawing.views]
    for drawing in drawings:
        reader.page.goto((run / "figures" / f"{drawing.name}.html").as_uri())
        for population in drawing.views:
            if len(drawing.views) > 1:
                reader.page.get_by_label(population_title(population), exact=True).check()
            reader.page.wait_for_selector(
                f'.plot[data-state="drawn"][data-view="{population}"] .main-svg', state="attached"
            )
            titles = reader.page.locator(".plot .annotation-text").all_text_contents()
            assert not {population_title(other) for other in drawing.views if other != population} & {*titles}
        assert reader.page.evaluate("document.documentElement.dataset.hostile") is None
    assert sum(len(drawing.views) for drawing in drawings) > len(drawings) > 10


def test_the_address_names_the_population(reader, run):
    reader.page.goto(f"{(run / 'figures/shares.html').as_uri()}#without_first")
    reader.page.wait_for_selector('.plot[data-state="drawn"][data-view="without_first"]')
    assert reader.page.get_by_label(population_title("without_first"), exact=True).is_checked()


def test_the_index_leads_to_every_figure(reader):
    links = reader.page.locator("h2 a").evaluate_all("links => links.map((link) => link.href)")
    assert len(links) > 10
    reader.page.wait_for_selector('.picture .plot[data-state="drawn"]')  # those further down as they come into sight
    reader.page.locator("h2 a").first.click()
    reader.page.wait_for_selector('.plot[data-state^="drawn"]')
