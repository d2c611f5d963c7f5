"""Dims in the report: each mention leads to the dim, and chosen ones are singled out in figures and tables."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from fake_gallery import FakeGallery
from fake_run import FakeRun
from outlier_features.gallery.render_gallery import render_gallery
from outlier_features.report.render_report import render_report
from reading import Reader

ROOT = Path(__file__).parents[2]
RUN = "tiny/text"
TO_FILE, TO_TABLES = "gallery/tiny/text/D{}.html", f"#{RUN}/tables"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A run whose gallery has pages of dims 7 and 5, and none of dim 9."""
    folder = tmp_path_factory.mktemp("dims")
    fake = FakeGallery(FakeRun(outliers=(9,), hits=(1, 2, 3)), neurons=1, examples=1, values=False)
    run = fake.write(folder / RUN)
    render_gallery(run, folder / "gallery" / RUN, source=fake.write_source(folder / "models/tiny"))
    render_report(
        [run], folder / "report.html", published=ROOT / "workflow/published", definitions=ROOT / "docs/definitions.md",
        galleries=[folder / "gallery" / RUN / "manifest.json"],
    )  # fmt: skip
    return folder


@pytest.fixture
def open_at(browser, results):
    """A reader at a place of the report, of which its console had nothing to say."""
    readers = []

    def opened(place, width=1280, **options):
        reader = Reader(browser, results / "report.html", width, **options)
        readers.append(reader)
        reader.page.goto("about:blank")
        reader.page.goto(f"{(results / 'report.html').as_uri()}#{RUN}{place}")
        reader.page.wait_for_function("document.querySelector('#dim-tools').hidden === false")
        return reader

    yield opened
    for reader in readers:
        assert reader.complaints == []
        reader.context.close()


def redrawn(reader, name):
    """A figure as it is drawn once nothing more comes."""
    reader.drawn(f"{RUN}/{name}")
    reader.page.wait_for_timeout(400)
    reader.drawn(f"{RUN}/{name}")
    return reader.by_id(f"{RUN}/{name}").locator(".plot")


# Of each trace of a figure with dims in its hovers, these and how strong its marks are.
MARKS = """box => box.data.filter((trace) => trace.type === "bar" && trace.customdata).map((trace) => {
  const { opacity } = trace.marker;
  return [trace.customdata.map(([dim]) => dim), trace.customdata.map((_, at) => opacity[at] ?? opacity)];
})"""


def test_every_mention_of_a_dim_leads_to_it(open_at, results):
    reader = open_at("")
    links = reader.page.locator("a.dim").evaluate_all(
        "all => all.map((one) => [one.textContent, one.getAttribute('href')])"
    )
    assert {dim for dim, _ in links} >= {"5", "7", "9"} and len(links) > 20
    for dim, href in links:
        assert href == (TO_FILE.format(dim) if dim in "57" else TO_TABLES)
        assert href.startswith("#") or (results / href).is_file()
    texts = reader.page.evaluate(
        """() => [...document.querySelectorAll("[data-run] :is(li, p, td, h3, h4)")].map((one) => {
          const copy = one.cloneNode(true);
          for (const part of copy.querySelectorAll("a.dim, ul")) part.remove();
          return copy.textContent;
        })"""
    )
    assert [text[:150] for text in texts if re.search(r"\b[Dd]im(ension)?s? \d", text)] == []
    reader.page.locator('a.dim[data-dim="7"]').first.click()
    assert reader.page.url.endswith(TO_FILE.format(7))


def test_dims_are_chosen_by_typing_and_the_address_keeps_them(open_at, results):
    reader = open_at("/criteria")
    redrawn(reader, "rules")
    field = reader.page.get_by_label("Dims", exact=True)
    field.fill("7, 9")
    marks = [pair for trace in redrawn(reader, "rules").evaluate(MARKS) for pair in zip(*trace, strict=True)]
    assert {dim for dim, _ in marks} == {5, 7, 9}
    assert all((strength >= 0.25) == (dim in (7, 9)) for dim, strength in marks)
    assert "dims=7,9" in reader.page.url
    reader.page.get_by_label("hidden", exact=True).check()
    plot = redrawn(reader, "rules")
    assert {dim for dims, _ in plot.evaluate(MARKS) for dim in dims} == {7, 9}
    assert set(plot.locator(".ytick text").all_text_contents()) == {"7", "9"}
    table = reader.by_id(f"{RUN}/rules").locator("table.sortable tbody tr:visible td:nth-child(2)")
    assert set(table.all_inner_texts()) == {"7", "9"}
    again = open_at(f"/criteria?{reader.page.url.partition('?')[2]}")
    assert {dim for dims, _ in redrawn(again, "rules").evaluate(MARKS) for dim in dims} == {7, 9}
    assert again.page.get_by_label("Dims", exact=True).input_value() == "7, 9"
    assert "7, 9" in again.page.locator("#dims-chosen").inner_text()
    again.page.locator("#dims-chosen").get_by_role("button").click()
    assert {dim for dims, _ in redrawn(again, "rules").evaluate(MARKS) for dim in dims} == {5, 7, 9}
    assert "dims=" not in again.page.url


def test_what_is_no_dim_of_the_model_is_said(open_at, results):
    width = json.loads((results / RUN / "summary.json").read_text())["model"]["d_model"]
    reader = open_at("")
    for text, said in ((str(width), f"0 to {width - 1}"), ("seven", "Expected")):
        reader.page.get_by_label("Dims", exact=True).fill(text)
        reader.page.locator("#dim-tools input[aria-invalid=true]").wait_for()
        reader.page.locator("#dim-tools output", has_text=said).wait_for()
        assert "dims=" not in reader.page.url
    reader.page.get_by_label("Dims", exact=True).fill("1..3 7")
    reader.page.wait_for_function("() => location.hash.includes('dims=1,2,3,7')")


def test_dims_are_chosen_by_a_rule_and_by_a_click_on_a_point(open_at, results):
    dims = pl.read_parquet(results / RUN / "dims.parquet")
    reader = open_at("/criteria")
    plot = redrawn(reader, "rules")
    rules = reader.page.get_by_label("Dims that a rule selects")
    named = [text for text in rules.locator("option").all_text_contents() if text.startswith("massive, all: ")]
    rules.select_option(named)
    selected = dims.filter("selected", rule="massive", population="all")["dim"].to_list()
    assert named == [f"massive, all: {len(selected)}"]
    assert {*map(int, re.search(r"dims=([\d,]+)", reader.page.url)[1].split(","))} == {*selected}
    plot = redrawn(reader, "rules")
    x, y = plot.evaluate(
        """box => {
          const { xaxis, yaxis, margin } = box._fullLayout;
          const bar = box.data.find((trace) => trace.type === "bar" && trace.customdata?.length);
          const { left, top } = box.getBoundingClientRect();
          const at = [bar.base[0] + bar.x[0] / 2, bar.y[0]];
          return [left + xaxis._offset + xaxis.l2p(at[0]), top + yaxis._offset + yaxis.l2p(at[1])];
        }"""
    )
    clicked = plot.evaluate(
        "box => box.data.find((trace) => trace.type === 'bar' && trace.customdata?.length).customdata[0][0]"
    )
    reader.page.mouse.move(x, y)
    reader.page.wait_for_timeout(200)
    reader.page.mouse.click(x, y)
    reader.page.wait_for_timeout(300)
    now = {*map(int, re.search(r"dims=([\d,]+)", reader.page.url)[1].split(","))}
    assert now == {*selected} ^ {clicked}


def test_panels_of_other_dims_are_left_out(open_at):
    reader = open_at("/why")
    plot = redrawn(reader, "lifecycle")
    axes = """box => Object.entries(box.layout.meta.dims)
      .filter(([axis]) => axis in box._fullLayout).map(([, dim]) => dim)"""
    everything, height = plot.evaluate(axes), plot.evaluate("box => box.layout.height")
    assert len(everything) > 1
    reader.page.evaluate("dim => { state.set('dims', String(dim)); state.set('others', 'hidden') }", everything[1])
    plot = redrawn(reader, "lifecycle")
    assert plot.evaluate(axes) == [everything[1]]
    assert plot.evaluate("box => box.layout.height") < height
    titles = plot.locator(".infolayer text.ytitle, .infolayer text.y2title").all_text_contents()
    assert len(titles) == 1 and f"dim {everything[1]}," in titles[0]
    assert plot.locator(".legendtext").count() > 1


def test_tables_single_dims_out_and_leave_others_out(open_at, results):
    frame = pl.read_parquet(results / RUN / "emergence.parquet")
    reader = open_at("/tables/emergence?dims=7")
    box = reader.by_id(f"{RUN}/tables/emergence").locator(".rows")
    box.locator("output").wait_for()
    box.get_by_role("textbox", name="Filter by dim").fill("5, 7")
    reader.page.wait_for_timeout(300)
    column = frame.columns.index("dim") + 1
    rows = box.locator("tbody tr:not(.spacer)")
    seen = rows.evaluate_all(f"all => all.map((row) => [row.cells[{column - 1}].textContent, row.className])")
    assert {*map(tuple, seen)} == {("7", "chosen"), ("5", "")}
    reader.page.get_by_label("hidden", exact=True).check()
    box.get_by_role("textbox", name="Filter by dim").fill("")
    wanted = f"{len(frame.filter(dim=7)):,} of {len(frame):,} rows"
    reader.page.wait_for_function(
        "([box, text]) => box.querySelector('output').textContent === text", arg=[box.element_handle(), wanted]
    )


def test_a_surface_has_a_chosen_dim_through_its_tokens_and_its_map_a_column(open_at, results):
    table = pl.read_parquet(results / RUN / "surface.parquet").filter(dim_first=9, dim_last=9).sort("token_first")
    assert len(table) > 2
    reader = open_at("/surface?dims=9")
    plot = redrawn(reader, "surface")
    [heights] = plot.evaluate(
        "box => box.data.filter(({ name }) => name === 'dimension 9').map(({ customdata }) => customdata)"
    )
    flat = 1e-3 * pl.read_parquet(results / RUN / "surface.parquet")["max_abs"].max()  # what is drawn on the ground
    drawn = [0.0 if value <= flat else value for value in reversed(table["max_abs"].to_list())]
    assert [float(text.replace(",", "")) for text in heights] == pytest.approx(drawn, rel=1e-3)
    others = """box => box.data.filter(({ meta }) => meta?.shift !== undefined)
      .map(({ opacity, visible }) => [opacity, visible])"""
    assert all(opacity < 0.5 for opacity, _ in plot.evaluate(others))
    veiled = """box => box.layout.shapes.filter(({ type }) => type === 'rect')
      .map(({ x0, x1 }) => [x0, x1]).sort(([one], [other]) => one - other)"""
    width = pl.read_parquet(results / RUN / "surface.parquet")["dim_last"].max() + 1
    assert redrawn(reader, "surface-map").evaluate(veiled) == [[-0.5, 8.5], [9.5, width - 0.5]]
    reader.page.get_by_label("hidden", exact=True).check()
    assert all(visible is False for _, visible in redrawn(reader, "surface").evaluate(others))


def test_every_link_leads_to_something_that_is_seen(open_at, results):
    """Those of all pages of the report, of its tables and of its dims' panels."""
    reader = open_at("")
    page, seen, dims = reader.page, set(), set()
    places = page.locator(".page").evaluate_all("pages => pages.map((one) => one.id)")
    for place in places:
        reader.visit(place)
        page.evaluate("document.querySelectorAll('.page:not([hidden]) details').forEach((one) => { one.open = true })")
        for box in page.locator(".page:not([hidden]) .rows").all():
            box.scroll_into_view_if_needed()
            box.locator("output").wait_for()
        links = page.locator("a").evaluate_all("all => all.map((one) => [one.getAttribute('href'), one.dataset.dim])")
        seen |= {href for href, _ in links}
        dims |= {int(dim) for href, dim in links if dim and href.startswith("#")}
    assert f"#{RUN}/where" in seen and "gallery/tiny/text/index.html" in seen and 9 in dims
    for href in sorted(seen):
        if href.startswith("https:"):
            continue
        file, _, place = href.partition("#")
        if file:
            assert (results / file).is_file(), href
            continue
        assert page.evaluate("href => document.querySelector(`a[href='${href}']`).hash", href) == href
        reader.visit(place)
        said = page.evaluate("place => document.getElementById(place).innerText.trim()", place)
        assert said, href
    for dim in sorted(dims):
        page.evaluate("dim => state.set('dim', String(dim))", dim)
        panel = page.get_by_role("dialog", name=f"Dimension {dim}")
        panel.locator("summary").first.wait_for()
        page.keyboard.press("Escape")
        panel.wait_for(state="hidden")


def test_neurons_are_no_dims(open_at):
    reader = open_at("")
    found = reader.page.evaluate(
        """() => {
          const text = (name, values) => ({ name, kind: "text", get: (row) => values[row] });
          const dim = { name: "dim", kind: "integer", get: (row) => [7, 7, 7][row] };
          const facts = { ...dimFacts(), otherRules: new Set(["of_neurons"]) };
          const of = (...columns) => [0, 1, 2].map(dimsOfRows({ columns: [dim, ...columns] }, facts).of);
          return [
            of(text("site", ["resid_post", "mlp_act", "attn_heads"])),
            of(text("sites", ["attn_norm+mlp_norm", "mlp_act", "mlp_norm"])),
            of(text("rule", ["massive", "of_neurons", "massive"])),
          ];
        }"""
    )
    assert found == [[[7], [], []], [[7], [], [7]], [[7], [], [7]]]


def test_a_dim_without_a_page_has_a_panel_with_all_that_is_known(open_at, results):
    reader = open_at("/criteria")
    link = reader.page.locator('#main a.dim[data-dim="9"]:visible').first
    link.focus()
    link.press("Enter")
    panel = reader.page.get_by_role("dialog", name="Dimension 9")
    panel.wait_for()
    assert "dim=9" in reader.page.url
    for name in ("dims", "gains", "lifecycle"):
        rows = pl.read_parquet(results / RUN / f"{name}.parquet")
        rows = rows.filter(pl.col("target_dim" if "target_dim" in rows.columns else "dim") == 9)
        box = panel.locator(f'.rows[data-file$="-D9-{name}"]')
        if rows.is_empty():
            assert box.count() == 0
            continue
        box.locator("output").wait_for()
        assert box.locator("output").inner_text() == f"{len(rows)} row{'' if len(rows) == 1 else 's'}"
    curves = panel.locator(".plot-of-dim")
    curves.locator(".main-svg").first.wait_for()
    emergence = pl.read_parquet(results / RUN / "emergence.parquet").filter(dim=9, site="resid_post", population="all")
    drawn = curves.evaluate("box => box.data.map((trace) => [trace.name, trace.y])")
    assert ["resid_post, all", emergence.sort("layer")["max_abs"].to_list()] in drawn
    said = panel.locator("li").all_text_contents()
    assert len(said) == len({*said}) > 2 and all(re.search(r"\b9\b", text) for text in said)
    reader.page.keyboard.press("Escape")
    panel.wait_for(state="hidden")
    assert "dim=" not in reader.page.url
    assert link.evaluate("one => one === document.activeElement")


def test_names_of_dims_in_figures_lead_to_them(open_at):
    reader = open_at("/criteria")
    plot = redrawn(reader, "rules")
    name = plot.locator(".ytick text.to-dim", has_text=re.compile("^9$"))
    assert (name.get_attribute("role"), name.get_attribute("aria-label")) == ("link", "Dimension 9")
    name.press("Enter")
    reader.page.get_by_role("dialog", name="Dimension 9").wait_for()
    reader.page.keyboard.press("Escape")
    with reader.page.expect_navigation():
        plot.locator(".ytick text.to-dim", has_text=re.compile("^7$")).click()
    assert reader.page.url.endswith(TO_FILE.format(7))
