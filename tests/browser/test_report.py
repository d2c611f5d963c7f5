"""The report in a browser: every figure and table as its reader meets it, and nothing from outside runs."""

import csv
import io
import json
import re
from pathlib import Path

import polars as pl
import pytest

from fake_run import FIGURES, FakeRun
from outlier_features.compare.compare_models import compare_models
from outlier_features.dims.compare_runs import compare_runs
from outlier_features.figures.run_figures import run_figures
from outlier_features.figures.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION
from outlier_features.files.foreign_files import write_gguf, write_yaml
from outlier_features.populations import population_title
from outlier_features.report.render_report import render_report
from outlier_features.summary.report_run import OF_THE_GALLERY, Run
from reading import MARK, SCRIPT, Reader

PUBLISHED = Path(__file__).parents[2] / "workflow/published"
HOSTILE = (f"\u202e{SCRIPT}", " שלום", "\t\x07", "<b>'", "\u2028&amp;", '`${1}"', "=HYPERLINK()", "x" * 100_000)
RUNS = ("tiny/text", "hostile/text")
CHAPTERS = ("", "/where", "/why", "/attention", "/effect", "/quantization", "/criteria", "/data")
SITES = ("attn_norm", "mlp_norm", "resid_post")
COSTS = pl.DataFrame(
    {"rule": ["extract_activations", "=evil()"], "jobs": [4, 1], "seconds": [12.5, None], "output_bytes": [10**9, 7]}
)
DEFINITIONS = Path(__file__).parents[2] / "docs/definitions.md"
MARKS = (BLUE, ORANGE, SKY, VERMILLION, GREEN, PURPLE)
INKS = (INK, GREY)
OVERLAPS = (Path(__file__).parent / "overlaps.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two runs, one of them hostile, their comparison and the report of both."""
    folder = tmp_path_factory.mktemp("results")
    runs = {
        "tiny/text": FakeRun(massive=(7, 5, 9), hits=(1, 2, 3)),
        "hostile/text": FakeRun(
            model="hostile", origin=f"<img src=x onerror='{MARK}'>", pieces=HOSTILE, position=7,
            absent={"resid_mid": f'"><svg onload={MARK}>{SCRIPT}'},
        ),
    }  # fmt: skip
    paths = [run.write(folder / name) for name, run in runs.items()]
    provenance = Run.read(paths[0]).tokens.provenance
    for_quantizers = paths[0] / "quantization"
    for_quantizers.mkdir()
    write_gguf(for_quantizers / "imatrix.gguf", {}, {}, provenance)
    write_yaml(for_quantizers / "llmcompressor_recipe.yaml", None, [], provenance)
    (folder / "comparison").mkdir()
    compare_runs(paths, folder / "comparison/dims.parquet", folder / "comparison/compared_dims.parquet")
    compare_models(paths, PUBLISHED, folder / "comparison/models.parquet")
    render_report(
        paths, folder / "report.html", published=PUBLISHED, definitions=DEFINITIONS,
        comparison=folder / "comparison", costs=COSTS,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def drawings(results):
    """Of each run, what it draws."""
    return {run: run_figures(Run.read(results / run)) for run in RUNS}


@pytest.fixture(scope="module")
def reader(browser, results):
    opened = Reader(browser, results / "report.html")
    yield opened
    assert opened.complaints == []
    assert {url.split(":")[0] for url in opened.requests} <= {"file", "data", "blob"}
    own = ((results / "report.html").as_uri(), (results / "report").as_uri() + "/")
    assert [url for url in opened.requests if url.startswith("file:") and not url.startswith(own)] == []
    opened.context.close()


def read_csv(content, frame):
    """Cells of a download, of the types of `frame`; text without the apostrophes that keep spreadsheets from it."""
    header, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
    assert header == frame.columns
    kinds = [_reader_of(dtype) for dtype in frame.dtypes]
    return [tuple(kind(cell) if cell != "" else None for kind, cell in zip(kinds, row, strict=True)) for row in rows]


def _reader_of(dtype):
    if dtype.is_integer():
        return int
    if dtype.is_float():
        return float
    if dtype == pl.Boolean:
        return {"true": True, "false": False}.__getitem__
    return lambda cell: re.sub(r"^'(?='*[=+\-@\t\r])", "", cell)


def rows_of(frame):
    """As a download has them: text beyond 1,000 characters is cut, and empty text is not told from none."""
    cut = [
        pl.when(pl.col(name).str.len_chars() > 1000)
        .then(pl.format("{}… ({} characters)", pl.col(name).str.head(1000), pl.col(name).str.len_chars()))
        .when(pl.col(name) != "")
        .then(pl.col(name))
        for name, dtype in frame.schema.items()
        if dtype == pl.String
    ]
    return frame.with_columns(cut).rows()


@pytest.mark.parametrize("run", RUNS)
def test_every_figure_is_drawn_in_every_view(reader, drawings, run):
    assert [drawing.name for drawing in drawings[run]] == list(FIGURES)
    for drawing in drawings[run]:
        place = f"{run}/{drawing.name}"
        reader.visit(place)
        if not drawing.views:
            assert reader.by_id(place).locator(".plot").count() == 0
            continue
        figure = reader.figure(place)
        for view, plot in drawing.views.items():
            if len(drawing.views) > 1:
                reader.choose(view)
                reader.drawn(place)
                assert figure.locator("dd.population").inner_text() == population_title(view)
            found = figure.locator(".plot").evaluate(
                "box => [box.data.map((trace) => [trace.type, trace.name ?? null]),"
                " box.querySelectorAll('.plot g.trace, .plot .hm image, .plot .bars, .plot .scatter').length]"
            )
            assert found[0] == [[trace.type, trace.name] for trace in plot.data]
            assert found[1] > 0


def test_a_view_shows_its_population(reader, results):
    layers = pl.read_parquet(results / "tiny/text/layers.parquet")
    figure = reader.figure("tiny/text/magnitude-by-layer")
    for population in ("without_first", "all"):
        reader.choose(population)
        reader.drawn("tiny/text/magnitude-by-layer")
        expected = layers.filter(population=population, site=SITES[1]).sort("layer")["top2"].to_list()
        ys = figure.locator(".plot").evaluate("box => box.data.map((trace) => [...(trace.y ?? [])])")
        assert expected in ys
        titles = figure.locator(".plot .annotation-text").all_text_contents()
        assert population_title(population) in titles


def test_one_switch_for_all_figures(reader, drawings):
    shown = (
        "figures => figures.filter((one) => one.checkVisibility())"
        ".map((one) => [one.id, one.querySelector('.plot')?.dataset.view ?? null])"
    )
    for population in ("without_first", "all"):
        reader.visit("hostile/text/where")
        reader.choose(population)
        for run, chapter in (("hostile/text", "where"), ("tiny/text", "criteria"), ("hostile/text", "effect")):
            reader.visit(f"{run}/{chapter}")
            views = dict(reader.page.locator("figure.drawing").evaluate_all(shown))
            drawn = [one for one in drawings[run] if one.chapter == chapter]
            assert [*views] == [f"{run}/{drawing.name}" for drawing in drawn]
            for drawing in drawn:
                names = list(drawing.views)
                expected = population if population in names else names[0] if names else None
                assert views[f"{run}/{drawing.name}"] == expected


def test_a_link_shows_what_its_sender_saw(browser, results):
    """Place, population and theme are in the address, whichever way the reader came to them; choices outlive a link."""
    sender = Reader(browser, results / "report.html", color_scheme="light")
    sender.visit("tiny/text/where")
    sender.choose("without_first")
    sender.page.get_by_role("button", name="Dark theme").click()
    sender.page.locator(".page:not([hidden]) .turn a[rel=next]").click()
    sender.page.wait_for_function("() => document.getElementById('tiny/text/why').checkVisibility()")
    link = sender.page.url
    assert link.partition("#")[2] == "tiny/text/why?population=without_first&theme=dark"
    receiver = Reader(browser, results / "report.html", color_scheme="light")
    receiver.page.goto("about:blank")
    for _ in range(2):
        receiver.page.goto(link)
        receiver.by_id("tiny/text/why").wait_for()
        assert receiver.page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert receiver.page.locator("#populations input:checked").get_attribute("value") == "without_first"
        receiver.page.reload()
    receiver.page.evaluate("location.hash = 'tiny/text/where?population=all'")
    receiver.page.wait_for_function("() => document.querySelector('#populations input:checked').value === 'all'")
    receiver.page.go_back()
    receiver.page.wait_for_function(
        "() => document.querySelector('#populations input:checked').value === 'without_first'"
    )
    for one in (sender, receiver):
        assert one.complaints == []
        one.context.close()


@pytest.mark.parametrize("run", RUNS)
def test_a_figure_s_download_is_its_data(reader, drawings, run):
    some = 0
    for drawing in drawings[run]:
        if drawing.data.is_empty():
            continue
        some += 1
        reader.visit(f"{run}/{drawing.name}")
        button = reader.by_id(f"{run}/{drawing.name}").get_by_role("button", name="as CSV")
        name, content = reader.download(button)
        assert name == f"{run.replace('/', '-')}-{drawing.name}.csv"
        assert read_csv(content, drawing.data) == rows_of(drawing.data)
    assert some > 5


def test_a_figure_is_saved_as_an_image(reader):
    figure = reader.figure("tiny/text/shares")
    reader.choose("without_first")
    name, content = reader.download(figure.get_by_role("button", name="as SVG"))
    assert name == "tiny-text-shares-without_first.svg"
    assert content.startswith(b"<svg") and b"without first tokens" in content
    title = figure.locator(".plot").get_attribute("aria-label")
    assert title.encode() in content and b"tiny on text" in content
    name, content = reader.download(figure.get_by_role("button", name="as PNG"))
    assert (name, content[:4]) == ("tiny-text-shares-without_first.png", b"\x89PNG")


def test_no_button_uploads_a_figure(reader):
    figure = reader.figure("tiny/text/shares")
    titles = figure.locator(".modebar-btn").evaluate_all("buttons => buttons.map((one) => one.dataset.title)")
    assert {"Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"} <= set(titles)
    assert [title for title in titles if re.search("cloud|share|edit|link", title, re.IGNORECASE)] == []


@pytest.mark.parametrize("run", RUNS)
def test_every_table_can_be_browsed_and_its_download_is_the_table(reader, results, run):
    names = json.loads((results / run / "summary.json").read_text())["tables"]
    for name in sorted({*names} - OF_THE_GALLERY):
        frame = pl.read_parquet(results / run / f"{name}.parquet")
        reader.visit(f"{run}/tables/{name}")
        details = reader.by_id(f"{run}/tables/{name}")
        box = details.locator(".rows")
        box.locator("output").wait_for()
        count = "1 row" if len(frame) == 1 else f"{len(frame):,} rows"
        assert box.locator("output").inner_text() == count
        assert [text.strip() for text in box.locator("th button").all_inner_texts()] == frame.columns
        file, content = reader.download(box.get_by_role("button", name="as CSV"))
        assert file == f"{run.replace('/', '-')}-{name}.csv"
        assert read_csv(content, frame) == rows_of(frame)


def test_a_table_is_sorted_and_searched(reader, results):
    frame = pl.read_parquet(results / "tiny/text/dims.parquet")
    reader.visit("tiny/text/tables/dims")
    box = reader.by_id("tiny/text/tables/dims").locator(".rows")
    dim = frame.columns.index("dim")

    def shown():
        cells = box.locator("tbody tr:not(.spacer)").evaluate_all(
            "rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
        )
        return [(row[0], row[1], int(row[dim])) for row in cells]

    key = ["population", "rule", "dim"]
    header = box.get_by_role("columnheader", name="max_abs")
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    largest = frame.sort("max_abs", descending=True, maintain_order=True)
    assert shown() == largest.select(key).rows()
    header.get_by_role("button").press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert shown() == frame.sort("max_abs", maintain_order=True).select(key).rows()
    steps = box.get_by_role("columnheader", name="step_down")
    steps.get_by_role("button").click()
    expected = frame.sort("step_down", descending=True, nulls_last=True, maintain_order=True)
    assert shown() == expected.select(key).rows()
    assert frame["step_down"].null_count() > 0
    assert header.get_attribute("aria-sort") is None
    search = box.get_by_role("searchbox")
    for query, wanted in (
        ("MASSIVE without", frame.filter(rule="massive", population="without_first")),
        ("without_first", frame.filter(population="without_first")),
        ("dettmers persistent", frame.filter(rule="dettmers", kind="persistent")),
        ("nowhere", frame.clear()),
    ):
        search.fill(query)
        reader.page.wait_for_function(
            "([box, text]) => box.querySelector('output').textContent === text",
            arg=[box.element_handle(), f"{len(wanted):,} of {len(frame):,} rows"],
        )
        assert sorted(shown()) == sorted(wanted.select(key).rows())
    search.fill("")
    meaning = box.get_by_role("columnheader", name="max_abs").get_by_role("button").get_attribute("aria-description")
    assert meaning == "largest abs(x) among the hits (activation)"


def test_a_choice_that_comes_just_after_a_link_does_not_undo_it(reader):
    """As that of a search does, which waits until its reader has written."""
    reader.visit("tiny/text/tables/dims")
    reader.page.evaluate("() => { location.hash = 'tiny/text/ablation'; state.set('chosen', 'late'); }")
    reader.page.wait_for_function("document.getElementById('tiny/text/ablation').checkVisibility()")
    place, _, choices = reader.page.evaluate("location.hash").partition("?")
    assert place == "#tiny/text/ablation" and "chosen=late" in choices.split("&")
    reader.page.evaluate("state.set('chosen', null)")


def test_short_tables_are_sorted_by_their_headers(reader):
    reader.visit("tiny/text/ablation")
    table = reader.by_id("tiny/text/ablation").locator("table.sortable")
    header = table.get_by_role("columnheader", name="Perplexity").first
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    texts = table.locator("tbody td:nth-child(5)").all_inner_texts()
    values = [float(text.replace(",", "")) for text in texts]
    assert values == sorted(values, reverse=True) and len(values) > 2


@pytest.fixture(scope="module")
def long(browser, tmp_path_factory):
    """A run with a table of 100,000 rows and more."""
    folder = tmp_path_factory.mktemp("long")
    run = FakeRun(sequences=1500, outliers=tuple(range(20)), hits=tuple(range(30, 40)), attention=False)
    path = run.write(folder / "tiny/text")
    render_report([path], folder / "report.html", published=PUBLISHED, definitions=DEFINITIONS)
    opened = Reader(browser, folder / "report.html")
    yield opened, pl.read_parquet(path / "pairs.parquet")
    assert opened.complaints == []
    opened.context.close()


def test_a_long_table_is_quick(long):
    reader, frame = long
    assert len(frame) > 90_000
    reader.visit("tiny/text/tables/pairs")
    box = reader.by_id("tiny/text/tables/pairs").locator(".rows")
    box.locator("tbody tr:not(.spacer)").first.wait_for()
    assert f"{len(frame):,} rows" in box.locator("output").inner_text()
    assert reader.page.locator("tr").count() < 1500
    assert 10 < box.locator("tbody tr").count() < 80
    times = box.evaluate(
        """async (box) => {
          const table = await unpackTable(box.dataset.table);
          const named = Object.fromEntries(table.columns.map((column) => [column.name, column]));
          const all = Uint32Array.from({ length: table.rows }, (_, row) => row);
          const times = {};
          const timed = (name, work) => {
            const start = performance.now();
            work();
            times[name] = Math.round(performance.now() - start);
          };
          timed("sort by a number", () => sorted(all, named.max_abs, true));
          timed("sort by text", () => sorted(all, named.rule, false));
          timed("search for a word", () => matching(table, "massive"));
          timed("search for a number, the first", () => matching(table, "17"));
          timed("search for a number, later", () => matching(table, "1 7"));
          timed("filter by text", () => all.filter(columnFilter(named.rule, "massive")));
          timed("filter by a number", () => all.filter(columnFilter(named.dim, "17")));
          timed("filter by a range", () => all.filter(columnFilter(named.max_abs, "5..10, 1e3..")));
          timed("write CSV", () => csv(table));
          return times;
        }"""
    )
    print(f"\n{len(frame):,} rows, milliseconds: {times}")
    box.get_by_role("columnheader", name="dim").get_by_role("button").click()
    first = box.locator('tr[aria-rowindex="2"] td').all_inner_texts()
    expected = frame.sort("dim", descending=True, maintain_order=True).row(0, named=True)
    assert (first[3], first[4]) == (str(expected["sequence"]), str(expected["dim"]))
    box.locator(".window").evaluate("view => { view.scrollTop = view.scrollHeight }")
    last = box.locator(f'tr[aria-rowindex="{len(frame) + 1}"] td')
    last.first.wait_for()
    expected = frame.sort("dim", descending=True, maintain_order=True).row(-1, named=True)
    assert last.nth(3).inner_text() == str(expected["sequence"])
    assert box.locator("tbody tr").count() < 80


def test_a_link_leads_to_its_page_and_place(browser, results, drawings):
    opened = Reader(browser, results / "report.html")
    page = opened.page
    assert page.locator(".page:not([hidden])").get_attribute("id") == "index"
    for place, shown in (
        ("hostile/text", "hostile/text"), ("hostile/text/shares", "hostile/text/criteria"), ("costs", "costs"),
        ("tiny/text/tables/sinks", "tiny/text/data"), ("definitions", "definitions"), ("comparison", "comparison"),
    ):  # fmt: skip
        page.goto("about:blank")
        page.goto(f"{(results / 'report.html').as_uri()}#{place}")
        visible = page.locator(".page").evaluate_all(
            "pages => pages.filter((one) => one.checkVisibility()).map((one) => one.id)"
        )
        assert visible == [shown]
        top = page.evaluate("place => document.getElementById(place).getBoundingClientRect().top", place)
        end = page.evaluate("innerHeight + scrollY >= document.documentElement.scrollHeight - 2")
        assert -5 <= top < 120 or end
        current = page.locator('nav [aria-current="page"]').evaluate_all("links => links.map((one) => one.hash)")
        assert current == [f"#{shown}"]
    page.goto(f"{(results / 'report.html').as_uri()}#nowhere")
    anchors = page.locator("a.link").evaluate_all("links => links.map((one) => decodeURIComponent(one.hash.slice(1)))")
    missing = page.evaluate("ids => ids.filter((id) => !document.getElementById(id))", anchors)
    assert missing == []
    for run in RUNS:
        assert {f"{run}/{drawing.name}" for drawing in drawings[run]} <= set(anchors)
    opened.context.close()


def test_back_leads_back(reader):
    reader.visit("definitions")
    reader.visit("tiny/text/shares")
    reader.page.go_back()
    reader.page.wait_for_function("() => document.getElementById('definitions').checkVisibility()")


def test_with_the_keyboard_alone(browser, results):
    opened = Reader(browser, results / "report.html")
    page, focused = opened.page, "document.activeElement"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focused}.className") == "skip"
    assert page.evaluate(f"{focused}.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate(f"{focused}.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focused}.closest('main') !== null && {focused}.closest('[hidden]') === null")

    def tab_to(test, most=120):
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate(f"((focused) => {test})({focused})"):
                return
        raise AssertionError(f"Tab does not lead to what {test}")

    tab_to("focused.hash === '#tiny/text'")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('tiny/text').checkVisibility()")
    tab_to("focused.hash === '#tiny/text/where'")
    page.keyboard.press("Enter")
    opened.drawn("tiny/text/magnitude-by-layer")
    page.locator(".skip").focus()
    tab_to("focused.name === 'population'")
    assert page.evaluate(f"getComputedStyle({focused}).outlineStyle") != "none"
    page.keyboard.press("ArrowRight")
    opened.drawn("tiny/text/magnitude-by-layer")
    population = opened.by_id("tiny/text/magnitude-by-layer").locator("dd.population")
    assert population.inner_text() == population_title("without_first")
    tab_to("focused.dataset.save === 'csv'")
    with page.expect_download():
        page.keyboard.press("Enter")
    opened.visit("tiny/text/tables")
    page.evaluate("document.getElementById('tiny/text/tables').focus()")
    tab_to("focused.tagName === 'SUMMARY'")
    page.keyboard.press("Enter")
    page.locator("details.table[open] input[type=search]").wait_for()  # a table is made when it comes into sight
    tab_to("focused.type === 'search'")
    tab_to("focused.closest('th') !== null")
    page.keyboard.press("Enter")
    assert page.evaluate(f"{focused}.closest('th').getAttribute('aria-sort')") in ("ascending", "descending")
    opened.context.close()


CONTRAST = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([red, green, blue]) => [red, green, blue]
    .map((part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (element) => {
    for (let box = element; box; box = box.parentElement) {
      const colour = channels(getComputedStyle(box).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  let seen = 0;
  const test = (element, ink, text) => {
    const [one, other] = [light(channels(ink)), light(ground(element))].sort((a, b) => b - a);
    seen += 1;
    if ((one + 0.05) / (other + 0.05) < 4.5) poor.push(`${text.slice(0, 30)}: ${ink} in ${element.closest("[id]").id}`);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("script, style, noscript, svg") || !element.checkVisibility()) continue;
    test(element, getComputedStyle(element).color, node.data);
  }
  const texts = ".plot :is(.xtick text, .ytick text, .legendtext, .xtitle, .ytitle, .annotation-text)";
  for (const text of document.querySelectorAll(texts)) {
    if (text.checkVisibility()) test(text.closest(".plot"), getComputedStyle(text).fill, text.textContent);
  }
  return [seen, poor];
}"""


def luminance(colour):
    """Relative luminance of WCAG 2.2, of `#rrggbb` or `rgb(r, g, b)`."""
    parts = [int(colour[at : at + 2], 16) for at in (1, 3, 5)] if colour[0] == "#" else re.findall(r"\d+", colour)[:3]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (int(one) / 255 for one in parts)
    ]
    return float(sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_contrasts_are_those_of_wcag():
    assert contrast("#000000", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_figures_colours_stand_out_from_both_grounds(browser, results, theme):
    """What is a graphic has a contrast of 3 at least, what is text 4.5 (WCAG 2.2, 1.4.11 and 1.4.3)."""
    opened = Reader(browser, results / "report.html", color_scheme=theme)
    ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    drawn = opened.page.evaluate("all => themed({ data: [], layout: { all } }).layout.all", [*MARKS, *INKS])
    found = {colour: contrast(shown, ground) for colour, shown in zip((*MARKS, *INKS), drawn, strict=True)}
    assert {colour: value for colour, value in found.items() if value < (4.5 if colour in INKS else 3)} == {}
    opened.context.close()


def test_both_themes_can_be_read(browser, results):
    opened = Reader(browser, results / "report.html", color_scheme="dark")
    page = opened.page
    grounds = []
    for theme in ("dark", "light"):
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        for place in ("index", "comparison", "costs", "definitions", *(f"tiny/text{chapter}" for chapter in CHAPTERS)):
            opened.visit(place)
            opened.draw_all()
            seen, poor = page.evaluate(CONTRAST)
            assert seen > 20
            assert poor == []
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        inks = page.locator('[id="tiny/text/shares"] .xtick text').first.evaluate("text => getComputedStyle(text).fill")
        grounds.append(inks)
        opened.visit("index")
        page.get_by_role("button", name=f"{'Light' if theme == 'dark' else 'Dark'} theme").click()
    assert len(set(grounds)) == 4
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.get_by_role("button", name="Light theme").click()
    page.wait_for_timeout(500)  # the browser writes it down in a process of its own
    page.goto("about:blank")
    page.goto((results / "report.html").as_uri())
    assert page.evaluate("document.documentElement.dataset.theme") == "light"  # it is remembered
    assert opened.complaints == []
    opened.context.close()


def test_the_table_of_all_runs_is_filtered_and_leads_to_their_pages(reader):
    reader.visit("comparison/models")
    table = reader.page.locator('[data-table="comparison/models/rows"]')
    table.get_by_label("rule in All runs and rules").select_option("massive")
    table.get_by_label("population in All runs and rules").select_option("all")
    assert table.locator("output").inner_text() == "2 of 8 rows"
    runs = table.locator("tbody tr:not(.spacer) td:first-child a")
    assert runs.all_text_contents() == [*RUNS]
    runs.nth(1).click()
    reader.page.wait_for_function("place => document.getElementById(place).checkVisibility()", arg=RUNS[1])
    reader.visit("comparison/models")
    for name in ("rule", "population"):
        table.get_by_label(f"{name} in All runs and rules").select_option("")
    assert table.locator("output").inner_text() == "8 rows"


@pytest.mark.parametrize("width", [400, 1280, 1920])
def test_nothing_overlaps(browser, results, width):
    opened = Reader(browser, results / "report.html", width)
    found = {}
    pages = [f"{run}{chapter}" for run in RUNS for chapter in CHAPTERS]
    for place in ("index", "comparison", "costs", "definitions", *pages):
        opened.visit(place)
        opened.page.evaluate(
            "document.querySelectorAll('.page:not([hidden]) details').forEach((one) => { one.open = true })"
        )
        opened.draw_all()
        opened.page.wait_for_timeout(300)
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        found[place] = opened.page.evaluate(OVERLAPS)
    assert {place: texts for place, texts in found.items() if texts} == {}
    if width == 400:
        opened.page.get_by_role("button", name="Contents").click()
        opened.page.locator("nav").get_by_role("link", name="Definitions").click()
        opened.by_id("definitions").wait_for()
        opened.page.locator("nav").wait_for(state="hidden")
    opened.context.close()


def test_text_from_outside_is_shown_and_not_run(reader, results):
    assert (results / "report.html").read_text(encoding="utf-8").count("x" * 1100) == 0
    reader.visit("hostile/text/massive")
    box = reader.by_id("hostile/text/massive").locator(".rows")
    box.locator("mark").first.wait_for()
    assert set(box.locator("mark").all_inner_texts()) == {"x" * 300 + "…"}
    assert any("=HYPERLINK()" in text for text in box.locator("bdi").all_inner_texts())
    reader.visit("hostile/text/tables/massive")
    reader.by_id("hostile/text/tables/massive").locator("tbody bdi").first.wait_for()
    assert reader.page.locator("img, svg[onload]").count() == 0
    shown = reader.page.locator("main").inner_text()
    assert f"‹U+202E›{SCRIPT}" in shown or SCRIPT in shown
    reader.visit("costs")
    cells = reader.by_id("costs").locator("td").all_inner_texts()
    assert "=evil()" in cells
    _, content = reader.download(reader.by_id("costs").get_by_role("button", name="as CSV"))
    assert (
        content.decode()
        == "rule,jobs,seconds,output_bytes\r\nextract_activations,4,12.5,1000000000\r\n'=evil(),1,,7\r\n"
    )
    assert reader.page.evaluate("document.documentElement.dataset.hostile") is None


def test_print_has_every_figure_of_the_page(browser, results):
    opened = Reader(browser, results / "report.html", color_scheme="dark")
    opened.visit("tiny/text/where")
    opened.page.wait_for_function("() => [...document.querySelectorAll('.page:not([hidden]) .plot')].every(isPrepared)")
    content = opened.page.pdf()
    assert content.startswith(b"%PDF")
    states = (
        opened.by_id("tiny/text/where").locator(".plot").evaluate_all("boxes => boxes.map((box) => box.dataset.state)")
    )
    assert set(states) == {"drawn"}
    assert opened.page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert opened.complaints == []
    opened.context.close()


def test_a_long_table_is_printed_from_where_it_begins(reader):
    """Kept whole it would leave the rest of a page empty."""
    reader.visit("tiny/text/effect")
    reader.page.emulate_media(media="print")
    kept = reader.page.locator('[id="tiny/text/effect"] table').evaluate_all(
        """tables => tables.map((one) => {
          const around = [];
          for (let box = one; box; box = box.parentElement) around.push(box);
          return around.some((box) => getComputedStyle(box).breakInside !== "auto");
        })"""
    )
    reader.page.emulate_media(media="screen")
    assert kept and not any(kept)


def test_without_scripts_every_page_and_its_words_are_there(browser, results):
    opened = Reader(browser, results / "report.html", java_script_enabled=False)
    shown = opened.page.locator(".page").evaluate_all("pages => pages.filter((one) => one.checkVisibility()).length")
    assert shown == 4 + len(RUNS) * len(CHAPTERS)
    assert "Rule massive on resid_post finds" in opened.page.locator("main").text_content()
    assert opened.page.locator("mark").count() > 0
    opened.context.close()


def test_the_first_figure_comes_soon(browser, results):
    opened = Reader(browser, results / "report.html")
    opened.page.goto("about:blank")
    opened.page.goto(f"{(results / 'report.html').as_uri()}#tiny/text/where")
    opened.drawn("tiny/text/magnitude-by-layer")
    marked = opened.page.evaluate("performance.getEntriesByName('first figure')[0].startTime")
    print(f"\nfirst figure: {marked:.0f} ms after the page's start")
    opened.context.close()
