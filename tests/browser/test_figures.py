"""A figure's own page in a browser: drawn from the files beside it, in the population that its reader asks for."""

import shutil
from pathlib import Path

import pytest

from fake_run import FakeRun
from outlier_features.draw_figures import draw_figures
from outlier_features.figures import run_figures
from outlier_features.report_run import Run

TEMPLATE = Path(__file__).parents[2] / "workflow/report/figures.html.j2"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
MARK = 'document.documentElement.setAttribute("data-hostile","ran")'
SCRIPT = f"</script><script>{MARK}</script>"

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser (chromium)")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    hostile = FakeRun(origin=SCRIPT, pieces=(SCRIPT, f"<img src=x onerror='{MARK}'>", "\u2028", "`${1}"))
    run = hostile.write(tmp_path_factory.mktemp("results") / "tiny/text")
    draw_figures(run, TEMPLATE, run / "figures", formats=[], width_mm=85)
    return run


def test_every_figure_is_drawn_in_every_population_and_nothing_hostile_runs(browser, run):
    page, said, asked = browser.new_page(viewport={"width": 400, "height": 900}), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    drawings = [drawing for drawing in run_figures(Run.read(run)) if drawing.views]
    for drawing in drawings:
        page.goto((run / "figures" / f"{drawing.name}.html").as_uri())
        for population in drawing.views:
            if len(drawing.views) > 1:
                page.get_by_label(population, exact=True).check()
            page.wait_for_selector(f'#plot[data-state="drawn {population}"] .main-svg', state="attached")
            titles = page.locator("#plot .annotation-text").all_text_contents()
            assert not {f"population {other}" for other in drawing.views if other != population} & {*titles}
    assert sum(len(drawing.views) for drawing in drawings) > len(drawings) > 10
    assert page.evaluate("document.documentElement.dataset.hostile") is None and said == []
    assert all(url.startswith(((run / "figures").as_uri(), "data:", "blob:")) for url in asked)
    page.close()


def test_the_address_names_the_population(browser, run):
    page = browser.new_page()
    page.goto(f"{(run / 'figures/shares.html').as_uri()}#without_first")
    page.wait_for_selector('#plot[data-state="drawn without_first"]')
    assert page.get_by_label("without_first", exact=True).is_checked()
    page.close()


def test_the_index_leads_to_every_figure(browser, run):
    page = browser.new_page()
    page.goto((run / "figures/index.html").as_uri())
    links = page.locator("h2 a").evaluate_all("links => links.map((link) => link.href)")
    assert len(links) > 10
    page.locator("h2 a").first.click()
    page.wait_for_selector('#plot[data-state^="drawn"]')
    page.close()
