"""The report in a browser: every figure is drawn, nothing from outside runs, nothing is refused or goes wrong."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fake_run import FIGURES, FakeRun
from outlier_features.render_report import render_report

FOLDER = Path(__file__).parents[2] / "workflow/report"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
MARK = 'document.documentElement.setAttribute("data-hostile","ran")'
SCRIPT = f"</script><script>{MARK}</script>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser (chromium)")


def browse(page, profile, *options):
    """What a headless Chromium wrote to stdout and to its log, after the page's scripts ran."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        f"--user-data-dir={profile}", "--virtual-time-budget=30000", "--enable-logging=stderr", "--v=0", *options,
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def report_of(folder, *runs):
    paths = [run.write(folder / str(index)) for index, run in enumerate(runs)]
    render_report(
        paths,
        FOLDER / "report.html.j2",
        FOLDER / "report.css",
        folder / "report.html",
        published=FOLDER.parent / "published",
    )
    return folder / "report.html"


def states(dom):
    return dict(re.findall(r'data-figure="([^"]+)-all-data"[^>]*data-state="(\w+)"', dom))


@pytest.mark.parametrize("width", [1280, 400])
def test_every_figure_is_drawn_and_nothing_hostile_runs(tmp_path, width):
    hostile = FakeRun(
        origin=f"<img src=x onerror='{MARK}'>",
        absent={"resid_mid": f'"><svg onload={MARK}>{SCRIPT}'},
        pieces=(f"\u202e{SCRIPT}", " שלום", "\t\x07", "<b>'", "\u2028&amp;", "`${1}"),
    )
    page = report_of(tmp_path, hostile)
    dom, console = browse(page, tmp_path / "profile", f"--window-size={width},2000", "--dump-dom")
    assert states(dom) == {f"run-1-{name}": "drawn" for name in FIGURES}
    plots = dom.split("</main>")[0].split("data-figure=")[1:]
    assert all(plot.count('class="main-svg"') >= 2 for plot in plots)
    assert "data-hostile" not in re.search("<html[^>]*>", dom)[0]
    assert console == ""


def test_no_button_uploads_a_figure(tmp_path):
    dom, _ = browse(report_of(tmp_path, FakeRun()), tmp_path / "profile", "--window-size=1280,2000", "--dump-dom")
    buttons = set(re.findall(r'class="modebar-btn[^>]*data-title="([^"]+)"', dom))
    assert {"Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"} < buttons
    assert [title for title in buttons if re.search("cloud|share|edit|link", title, re.IGNORECASE)] == []
    assert not re.search(r'(?:src|href)="https?:', dom.split("<main>")[1].split("</main>")[0])


def test_figures_of_later_runs_are_drawn_when_they_are_near(tmp_path):
    page = report_of(tmp_path, FakeRun(), FakeRun(model="second"))
    for attempt in range(3):  # a browser that is not seen draws a frame only now and then
        dom, console = browse(page, tmp_path / f"profile-{attempt}", "--window-size=1280,40000", "--dump-dom")
        assert console == ""
        if len(states(dom)) == 2 * len(FIGURES):
            break
    assert set(states(dom).values()) == {"drawn"}
    assert len(states(dom)) == 2 * len(FIGURES)


def test_the_page_is_not_wider_than_a_small_window(tmp_path):
    page = report_of(tmp_path, FakeRun(model="a-rather-long-name-of-a-model-that-has-no-spaces-in-it"), FakeRun())
    probe = tmp_path / "probe.html"
    text = page.read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    script = "<script>document.title = `width ${document.documentElement.scrollWidth} of ${innerWidth}`</script></body>"
    probe.write_text(text.replace("</body>", script), encoding="utf-8")
    dom, _ = browse(probe, tmp_path / "profile", "--window-size=500,900", "--dump-dom")
    found, window = map(int, re.search(r"<title>width (\d+) of (\d+)</title>", dom).groups())
    assert found <= window
