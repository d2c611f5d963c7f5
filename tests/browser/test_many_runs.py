"""A report of many runs: its first page says what all found, and data of a run are loaded once it is asked for."""

from pathlib import Path

import pytest

from fake_run import FakeRun
from outlier_features.compare.compare_models import compare_models
from outlier_features.dims.compare_runs import compare_runs
from outlier_features.report.render_report import render_report
from reading import Reader

ROOT = Path(__file__).parents[2]
RUNS = [f"model{number}/text" for number in range(8)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    paths = [FakeRun(model=name.partition("/")[0], attention=False).write(folder / name) for name in RUNS]
    comparison, published = folder / "comparison", ROOT / "workflow/published"
    comparison.mkdir()
    compare_runs(paths, comparison / "dims.parquet", comparison / "compared_dims.parquet")
    compare_models(paths, published, comparison / "models.parquet")
    render_report(
        paths, folder / "report.html", published=published, definitions=ROOT / "docs/definitions.md",
        comparison=comparison,
    )  # fmt: skip
    return folder


def of_runs(reader):
    """The runs whose data the page has asked for."""
    beside = (reader.file.with_suffix("") / "data").as_uri() + "/"
    names = [url.removeprefix(beside) for url in reader.requests if url.startswith(beside)]
    return {"/".join(name.split("/")[:2]) for name in names} & {*RUNS}


def test_data_of_a_run_are_loaded_once_it_is_shown(browser, results):
    reader = Reader(browser, results / "report.html")
    assert reader.page.locator(".page:visible").evaluate_all("pages => pages.map((one) => one.id)") == ["index"]
    links = reader.page.locator("#index tbody a").evaluate_all("links => links.map((one) => one.hash)")
    assert links == [f"#{name}" for name in RUNS]
    reader.page.wait_for_load_state("networkidle")
    assert of_runs(reader) == set()
    reader.page.locator("#index tbody a").nth(7).click()
    reader.drawn(f"{RUNS[7]}/first-screen")
    reader.page.wait_for_load_state("networkidle")
    assert of_runs(reader) == {RUNS[7]}
    reader.figure(f"{RUNS[2]}/shares")
    assert of_runs(reader) == {RUNS[7], RUNS[2]}
    assert reader.complaints == []
    reader.context.close()


@pytest.mark.parametrize("width", [400, 1280])
def test_the_table_of_all_runs_fits(browser, results, width):
    reader = Reader(browser, results / "report.html", width)
    assert reader.page.evaluate("document.documentElement.scrollWidth") <= width
    reader.visit("comparison")
    reader.draw_all()
    assert reader.page.evaluate("document.documentElement.scrollWidth") <= width
    reader.context.close()
