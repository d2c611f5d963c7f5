"""A finished run as an object: its tables, statistics, figures, summary and mask."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from outlier_features.detect.hits_schema import HITS
from outlier_features.errors import InputError
from outlier_features.files.artifacts import read_json, require_equal
from outlier_features.files.missing import missing_sentence
from outlier_features.files.tables import public_tables
from outlier_features.notebook.catalogue import Catalogue
from outlier_features.scan.statistics import SiteStatistics
from outlier_features.summary.summarize_run import SUMMARY_KEYS, facts_of
from outlier_features.tokens.token_text import read_texts
from outlier_features.tokens.tokens import Tokens
from outlier_features.wording import count

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from outlier_features.figures.style import Drawing

SUMMARY = "summary.json"


def open_run(directory: str | Path) -> "Run":
    """The run in `directory`, `<results>/<model>/<corpus>`.

    Raises `InputError` where none is there.
    """
    return Run(Path(directory))


class Run:
    """A finished run. What is asked for is read then, checked to be whole and of this run, and kept.

    directory   where its files lie
    tables      polars DataFrames by name; `docs/tables.md` has every column
    figures     drawings by name: `title`, `text` (the caption), `views` (plotly figures), `data` (what is drawn)
    statistics  by site: extremes, moments and counts of every dim in every layer, numpy arrays (L, H)
    """

    def __init__(self, directory: Path, keep: object = None):
        """keep   what lives as long as the run, as a temporary directory does"""
        if not (directory / SUMMARY).is_file():
            raise InputError(_no_run(directory))
        self.directory = directory
        self._keep = keep

    @cached_property
    def summary(self) -> dict[str, Any]:
        """`summary.json`: model, corpus, sites, rules, and what each rule selects in each population."""
        found: dict[str, Any] = read_json(self.directory / SUMMARY, *SUMMARY_KEYS)
        return found

    @cached_property
    def mask(self) -> dict[str, Any]:
        """`mask.json`: the selected dims by rule and population, see `docs/mask.md`."""
        found: dict[str, Any] = read_json(self._there("mask.json"), "masks")
        return found

    @cached_property
    def tables(self) -> Catalogue[pl.DataFrame]:
        described = {name: table for name, table in sorted(public_tables().items()) if name in self.summary["tables"]}
        absent = {name: why for why, names in self._missing.items() for name in names}
        entries = {name: f"a row is: {table.row}" for name, table in described.items() if name not in absent}

        def read(name: str) -> pl.DataFrame:
            return self.tokens.files.rows(self.directory / f"{name}.parquet", described[name])

        return Catalogue("table", entries, read, absent)

    @cached_property
    def statistics(self) -> Catalogue[SiteStatistics]:
        file = self.tokens.files.tensors(self._there("statistics.safetensors"))
        absent: Mapping[str, str] = self.summary["sites"]["absent"]
        present = self.summary["sites"]["present"]
        entries = {site: f"absent in some blocks: {absent[site]}" if site in absent else "" for site in present}
        return Catalogue("site", entries, lambda site: SiteStatistics.read(file, site), absent)

    @cached_property
    def figures(self) -> Catalogue["Drawing"]:
        from outlier_features.figures.run_figures import figures_by_name
        from outlier_features.summary.report_run import Run as ReportRun

        draw = figures_by_name(ReportRun.read(self.directory))
        return Catalogue("figure", dict.fromkeys(draw), lambda name: draw[name](), titled=lambda one: one.title)

    def figure(self, name: str, population: str | None = None) -> "go.Figure":
        """A figure of the report, the caller's own copy.

        population   `all` or `without_first`; the figure's first unless given

        Raises `InputError` where the run has no such figure, or nothing to draw in it.
        """
        import plotly.graph_objects as go

        drawing = self.figures[name]
        if not drawing.views:
            raise InputError(f"figure {name!r}: {drawing.text}")
        chosen = next(iter(drawing.views)) if population is None else population
        if chosen not in drawing.views:
            raise InputError(f"figure {name!r}: found population {chosen!r}, expected {' or '.join(drawing.views)}")
        return go.Figure(drawing.views[chosen])

    def dims(self, rule: str, population: str = "all") -> list[int]:
        """The dims that a rule selects, the one with the largest `abs(x)` first. Raises `InputError`."""
        rules = self._of_population(population)["rules"]
        if rule not in rules:
            raise InputError(f"found no rule {rule!r} applied in {self.directory}, expected one of {', '.join(rules)}")
        return [row["dim"] for row in rules[rule]["dims"]]

    def hits(self, site: str) -> pl.DataFrame:
        """Every listed value of a site at or above its floor: sequence, layer, token, dim, value.

        Of sequences that have too many they are counted instead (`summary["sites"]["dense"]`). Raises `InputError`
        where the run has no such site, or its hits were removed.
        """
        present = self.summary["sites"]["present"]
        if site not in present:
            raise InputError(f"found no site {site!r} in {self.directory}, expected one of {', '.join(present)}")
        files = sorted((self.directory / "hits" / site).glob("*.parquet"))
        tables = [self.tokens.files.table(file, HITS) for file in files]
        whole = sum(said["stop"] - said["start"] for _, said in tables)
        if whole != self.summary["corpus"]["sequences"]:
            raise InputError(
                f"{self.directory / 'hits' / site} has the hits of {whole} of {self.summary['corpus']['sequences']} "
                "sequences, expected all (others may have been removed)"
            )
        order = sorted(tables, key=lambda table: table[1]["start"])
        return pl.concat([frame for frame, _ in order])

    @cached_property
    def tokens(self) -> Tokens:
        """Token ids, which positions are special, and which are no padding: numpy arrays (N, T)."""
        found = Tokens.read(self._there("tokens.safetensors"))
        facts = {key: value for key, value in facts_of(self.summary).items() if key in found.provenance}
        require_equal(found.provenance, facts, tuple(facts), self.directory / SUMMARY)
        return found

    @cached_property
    def texts(self) -> list[str]:
        """The text of each sequence."""
        return [text.decode() for text in read_texts(self._there("texts.parquet"), self.tokens)]

    @property
    def populations(self) -> list[str]:
        return list(self.summary["populations"])

    @property
    def _missing(self) -> dict[str, list[str]]:
        """By the sentence that says why, the tables that are missing."""
        return {missing_sentence(analysis, why): why["tables"] for analysis, why in self.summary["missing"].items()}

    def _of_population(self, population: str) -> Any:
        if population not in self.populations:
            raise InputError(f"found population {population!r}, expected {' or '.join(self.populations)}")
        return self.summary["populations"][population]

    def _there(self, name: str) -> Path:
        path = self.directory / name
        if not path.is_file():
            raise InputError(f"{path} is not there, expected every file of the run")
        return path

    def __repr__(self) -> str:
        model, corpus = self.summary["model"], self.summary["corpus"]
        rules = self._of_population("all")["rules"]
        found = ", ".join(f"{rule} {facts['dims_selected']}" for rule, facts in rules.items())
        return (
            f"{model['name']} on {corpus['name']}: {count(model['blocks'], 'block')} of "
            f"{count(model['d_model'], 'dim')}, {count(corpus['sequences'], 'sequence')}; dims selected: {found}"
        )


def _no_run(directory: Path) -> str:
    below = sorted(str(path.parent) for path in directory.glob(f"*/{SUMMARY}"))
    below = below or sorted(str(path.parent) for path in directory.glob(f"*/*/{SUMMARY}"))
    if not directory.is_dir():
        return f"{directory} is no directory, expected one with a finished run, <results>/<model>/<corpus>"
    return f"{directory} has no {SUMMARY}, expected a finished run" + (f", as {', '.join(below)}" if below else "")
