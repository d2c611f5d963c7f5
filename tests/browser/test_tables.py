"""Tables of the report in a browser: each column has a field that filters its rows, beside answers of polars."""

from pathlib import Path

import polars as pl
import pytest

from fake_run import FakeRun
from outlier_features.report.render_report import render_report
from reading import Reader

ROOT = Path(__file__).parents[2]
PAIRS, DIMS = "tiny/text/tables/pairs", "tiny/text/tables/dims"


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """A report with a table of some thousand rows, and the run's directory."""
    folder = tmp_path_factory.mktemp("tables")
    fake = FakeRun(sequences=60, outliers=tuple(range(20)), hits=tuple(range(30, 40)), attention=False)
    run = fake.write(folder / "tiny/text")
    render_report(
        [run], folder / "report.html", published=ROOT / "workflow/published", definitions=ROOT / "docs/definitions.md"
    )
    reader = Reader(browser, folder / "report.html")
    yield reader, run
    assert reader.complaints == []
    reader.context.close()


class Browsed:
    """One table of the report, and its rows as polars reads them."""

    def __init__(self, opened, place):
        self.reader, run = opened
        self.frame = pl.read_parquet(run / f"{place.rpartition('/')[2]}.parquet").with_row_index("row")
        self.reader.visit(place)
        self.box = self.reader.by_id(place).locator(".rows")
        self.box.locator("output").wait_for()

    def field(self, column):
        return self.box.get_by_role("textbox", name=f"Filter by {column}: ")

    def ask(self, column, text):
        self.field(column).fill(text)

    def count(self, expected):
        self.reader.page.wait_for_function(
            "([box, text]) => box.querySelector('output').textContent === text",
            arg=[self.box.element_handle(), expected],
        )

    def has(self, wanted):
        """Whether the table has these rows and no others."""
        whole = len(wanted) == len(self.frame)
        self.count(f"{len(wanted):,}{'' if whole else f' of {len(self.frame):,}'} rows")
        first = self.box.locator('tr[aria-rowindex="2"] td')
        if len(wanted):
            row = wanted.row(0, named=True)
            assert first.nth(self.frame.columns.index("dim") - 1).inner_text() == str(row["dim"])


C = pl.col
ASKED = [
    ("dim", "2", C("dim") == 2),  # and none of 12 and 20 to 29
    ("dim", "2, 17", C("dim").is_in([2, 17])),
    ("dim", "2,17 31", C("dim").is_in([2, 17, 31])),
    ("dim", ">= 30", C("dim") >= 30),
    ("dim", "> 4, < 7", C("dim").is_in([5, 6])),
    ("dim", "5..7", C("dim").is_in([5, 6, 7])),
    ("dim", "..3", C("dim") <= 3),
    ("dim", "!= 2", C("dim") != 2),
    ("dim", "1..3, 31", C("dim").is_in([1, 2, 3, 31])),
    ("dim", "-1", C("dim") == -1),
    ("rule", "ASSI", C("rule").str.contains("massi")),
    ("rule", "rs.*", C("rule") == "rs.*"),  # text is text
    ("max_abs", "> 100", C("max_abs") > 100),
    ("max_abs", "1e2..1e3", C("max_abs").is_between(100, 1000)),
]


@pytest.mark.parametrize(("column", "text", "wanted"), ASKED, ids=[f"{column} {text}" for column, text, _ in ASKED])
def test_a_column_s_field_finds_what_polars_does(opened, column, text, wanted):
    table = Browsed(opened, PAIRS)
    table.ask(column, text)
    table.has(table.frame.filter(wanted))
    table.ask(column, "")
    table.has(table.frame)


def test_fields_of_several_columns_hold_together_and_with_the_search(opened):
    table = Browsed(opened, DIMS)
    table.ask("population", "without")
    table.ask("dim", "0..9")
    half = table.frame.filter(C("population").str.contains("without") & (C("dim") <= 9))
    table.has(half)
    table.box.get_by_role("searchbox", name="Search in").fill("dettmers")
    table.has(half.filter(C("rule") == "dettmers"))
    for column in ("population", "dim"):
        table.ask(column, "")
    table.box.get_by_role("searchbox", name="Search in").fill("")


def test_rows_without_a_value_are_found_and_what_cannot_be_read_is_said(opened):
    table = Browsed(opened, DIMS)
    assert 0 < table.frame["step_down"].null_count() < len(table.frame)
    table.ask("step_down", "–")
    table.has(table.frame.filter(C("step_down").is_null()))
    table.ask("step_down", "")
    field = table.field("max_abs")
    field.fill("large")
    table.box.locator("input[aria-invalid=true]").wait_for()
    said = table.box.locator("output").inner_text()
    assert said.startswith(f"{len(table.frame):,} rows; max_abs: ")
    field.press("Escape")
    table.has(table.frame)


def test_a_link_shows_the_rows_and_their_order_that_its_sender_saw(opened, browser):
    table = Browsed(opened, DIMS)
    table.ask("dim", "0..9")
    table.ask("rule", "dett & /?=#")
    table.count(f"0 of {len(table.frame):,} rows")
    table.ask("rule", "dett")
    table.box.get_by_role("button", name="max_abs").click()
    wanted = table.frame.filter((C("dim") <= 9) & (C("rule") == "dettmers")).sort("max_abs", descending=True)
    table.has(wanted)
    sender, _ = opened
    link = sender.page.url.replace(DIMS, "tiny/text/data", 1)  # whoever came by the contents
    receiver = Reader(browser, sender.file)
    receiver.page.goto("about:blank")
    receiver.page.goto(link)
    box = receiver.by_id(DIMS).locator(".rows")
    box.locator("output").wait_for()
    assert box.locator("output").inner_text() == f"{len(wanted):,} of {len(table.frame):,} rows"
    assert box.get_by_role("textbox", name="Filter by dim: ").input_value() == "0..9"
    assert box.locator("th[aria-sort=descending]").inner_text().startswith("max_abs")
    assert receiver.complaints == []
    receiver.context.close()
    for column in ("dim", "rule"):
        table.ask(column, "")
    table.count(f"{len(table.frame):,} rows")
    assert "dim%3D" not in sender.page.url


def test_a_number_with_commas_is_one_where_it_is_written_so(opened):
    reader, _ = opened
    found = reader.page.evaluate(
        """() => {
          const made = (unit, values) => ({ kind: "integer", unit, values, get: (row) => values[row] });
          const rows = (column, text) => {
            const test = columnFilter(column, text);
            return column.values.filter((_, row) => test(row));
          };
          const values = [0.1234, 0.12, 247.2, 24728, -Infinity, null];
          const real = { kind: "number", values, get: (row) => values[row] };
          return [
            rows(made("", [24, 728, 24728]), "24,728"), rows(made("tokens", [24, 728, 24728]), "24,728"),
            rows(made("tokens", [24, 728, 24728]), "24, 728"), rows(made("", [247, 24728, 2470]), "247"),
            rows(real, "0.12"), rows(real, "247"), rows(real, "24,728"), rows(real, "<0"), rows(real, "–"),
          ];
        }"""
    )
    assert found == [[24, 728], [24728], [24, 728], [247], [0.1234, 0.12], [247.2], [24728], [float("-inf")], [None]]
