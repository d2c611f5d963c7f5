"""The public tables of a run, to be browsed in the report."""

from dataclasses import dataclass

from outlier_features.files.missing import missing_sentence
from outlier_features.files.tables import public_tables
from outlier_features.report.page_data import described, fair_shares, packed, packed_within
from outlier_features.summary.report_run import Run


@dataclass(frozen=True)
class BrowsedTable:
    """The first `kept` of the `in_all` rows of a table, packed; `row` says what a row is.

    missing   why there is none, if it stands in the place of a missing analysis
    """

    name: str
    row: str
    in_all: int
    kept: int
    packed: str
    missing: str | None


def browsed_tables(run: Run, budget: int) -> list[BrowsedTable]:
    """The tables that the run has, in the order of the docs, together in so many bytes."""
    of_run = {**run.first_rows, **run.tables}
    frames = {table: of_run[table.name] for table in public_tables().values() if table.name in of_run}
    texts = {table.name: packed(frame, described(table)) for table, frame in frames.items()}
    shares = fair_shares({name: len(text) for name, text in texts.items()}, budget)
    missing = {
        name: missing_sentence(analysis, facts)
        for analysis, facts in run.summary["missing"].items()
        for name in facts["tables"]
    }
    found = []
    for table, frame in frames.items():
        text, kept = packed_within(frame, texts[table.name], shares[table.name], described(table))
        in_all = run.rows_in_all.get(table.name, len(frame))
        found.append(BrowsedTable(table.name, table.row, in_all, kept, text, missing.get(table.name)))
    return found
