"""Rule render_report: one HTML file for all runs, complete in itself, that opens without a network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl

from outlier_features.compare.failures import read_failures
from outlier_features.compare.first_steps_schema import FIRST_STEPS
from outlier_features.compare.models_schema import MODELS
from outlier_features.compare.published_numbers import published_numbers
from outlier_features.compare.revisions import same_weights
from outlier_features.dims.comparison_schema import COMPARISON
from outlier_features.errors import DamagedFile, InputError
from outlier_features.figures.compared_runs import Compared
from outlier_features.figures.comparison_figures import comparison_figures
from outlier_features.figures.run_figures import run_figures
from outlier_features.figures.style import Drawing
from outlier_features.files.artifacts import read_json, write_page
from outlier_features.files.tables import Table, read_table
from outlier_features.model_name import is_trained, split_name
from outlier_features.progress import item_bar
from outlier_features.published import published_facts
from outlier_features.report.compared_table import compared_table, first_steps_table
from outlier_features.report.definitions_page import anchors, definitions_page
from outlier_features.report.location_tables import location_comparisons, location_dims, location_facts
from outlier_features.report.page_data import described, packed
from outlier_features.report.page_template import FIGURE_SCRIPTS, FOLDER, PLOTLY, Pages, PlacedFigure
from outlier_features.report.report_browser import browsed_tables
from outlier_features.report.report_tables import (
    ablations,
    massive_rows,
    meanings,
    overview,
    overview_rules,
    overview_words,
    provenance,
    rule_rows,
    selected_dims,
)
from outlier_features.rules.kinds import listing_rules
from outlier_features.run.costs_schema import COSTS
from outlier_features.summary.facts import facts_in
from outlier_features.summary.glossary import FOR_NEWCOMERS, LIMITS, TERMS
from outlier_features.summary.in_short import InShort, in_short
from outlier_features.summary.report_run import Run
from outlier_features.summary.run_rules import applied_sites, main_rules
from outlier_features.tokens.token_context import massive_spans

MASSIVE_ROWS = 1000
ROWS_WITHOUT_SCRIPTS = 50
DIM_ROWS = 20
# The page's bytes; where figures and words alone have more, or nearly, the tables of each run still get some.
PAGE_BYTES = 11_500_000
LEAST_TABLE_BYTES = 200_000
SCRIPTS = (PLOTLY, *FIGURE_SCRIPTS, "table.js", "report.js")


def render_report(
    runs: Sequence[Path],
    report: Path,
    *,
    published: Path,
    definitions: Path,
    comparison: Path | None = None,
    costs: pl.DataFrame | None = None,
    galleries: Sequence[Path] = (),
    folder: Path = FOLDER,
) -> None:
    """Write `report` with a page for each run (a directory `<results>/model/corpus`).

    published    directory of what papers and repositories printed, as CSV
    definitions  the Markdown document that says exactly what is measured, which becomes a page
    comparison   the directory of what compares the runs; None for one run
    costs        the table `costs`; without rows there is no page on them
    galleries    the manifests of the runs' galleries, which lie beside the report; none for a run without
    folder       of the templates

    Text from models and corpora is data: it is escaped in HTML, in plotly's labels and in the figures' JSON, and packed
    in tables, whose scripts make text nodes of it. Beyond that the page forbids itself to load anything and to run any
    script but its own, named by their hashes.
    """
    read = [Run.read(run) for run in item_bar(runs, "read", "run")]
    compared = _compared(comparison, read, published) if comparison else None
    pages = Pages(folder, anchors(definitions))
    sections = [section(run, published) for run in item_bar(read, "render", "run")]
    require_names([part["id"] for part in sections])
    facts: dict[str, Any] = {
        "overview": overview([run.summary for run in read]),
        "failures": read_failures(comparison).to_dicts() if comparison else [],
        "overview_rules": overview_rules([run.summary for run in read]),
        "overview_words": overview_words([run.summary for run in read]),
        "definitions": definitions_page(definitions),
        "meanings": meanings([run.summary for run in read]),
        "terms": TERMS,
        "limits": LIMITS,
        "for_newcomers": FOR_NEWCOMERS,
        "comparison": compared,
        "costs": None if costs is None or costs.is_empty() else _listed(costs, COSTS),
    }
    manifests = {"/".join(path.parent.parts[-2:]): path for path in galleries}
    for part, run in zip(sections, read, strict=True):
        part["gallery"] = _gallery(run, manifests.get(run.name), report)
    bare = len(pages.render("report.html.j2", scripts=SCRIPTS, sections=sections, **facts).encode())
    budget = max((PAGE_BYTES - bare) // len(read), LEAST_TABLE_BYTES)
    for part, run in zip(sections, item_bar(read, "tables", "run"), strict=True):
        part["tables"] = browsed_tables(run, budget)
    write_page(report, pages.render("report.html.j2", scripts=SCRIPTS, sections=sections, **facts))


def _compared(comparison: Path, runs: Sequence[Run], published: Path) -> dict[str, Any]:
    """What the templates show of the runs beside one another. Raises `DamagedFile` where it compares other runs."""
    models, provenance = read_table(comparison / "models.parquet", MODELS)
    names = [run.name for run in runs]
    if provenance["runs"] != names:
        path = comparison / "models.parquet"
        raise DamagedFile(path, f"expected a comparison of {', '.join(names)}, found {', '.join(provenance['runs'])}")
    layers = {run.name: run.tables["layers"] for run in runs}
    shown = Compared.of(models, [run.summary for run in runs], layers, published_numbers(published))
    drawings = comparison_figures(shown)
    steps = comparison / "first_steps.parquet"
    trained = None if shown.training.is_empty() else first_steps_table(read_table(steps, FIRST_STEPS)[0])
    revisions = models.drop_nulls("revision").select("model", "revision", "same_weights_as")
    return {
        "models": compared_table(models),
        "same_weights": same_weights(revisions.unique(maintain_order=True).rows()),
        "first_steps": trained,
        "dims": _listed(read_table(comparison / "dims.parquet", COMPARISON)[0], COMPARISON),
        "figures": [PlacedFigure.of(drawing, f"comparison/{drawing.name}", data=True) for drawing in drawings],
        "contents": [("models", "All runs and rules"), *((one.name, one.title) for one in drawings),
                     *([("first-steps", "When each dimension first passes")] if trained else []),
                     ("dims", "Dimensions in common")],
    }  # fmt: skip


def section(run: Run, published: Path) -> dict[str, Any]:
    """What the templates show of a run; all but its tables, which get the room that is left."""
    summary = run.summary
    name = run.name
    main, listing = list(main_rules(summary)), listing_rules(summary["rules"])
    activations = run.tables["massive"].filter(pl.col("rule").is_in(listing))
    spans, in_all = massive_spans(activations, run.texts, run.tokens, MASSIVE_ROWS)
    rows, hidden = selected_dims(run.tables["dims"], main, DIM_ROWS)
    facts = facts_in(summary, run.tables)
    drawings, short = run_figures(run), in_short(summary, facts)
    trained = is_trained(split_name(summary["model"]["name"])[1])
    known = published_facts(published, summary["model"]["kind"], summary["model"]["origin"] or "") if trained else []
    return {
        "id": name,
        "file": name.replace("/", "-"),
        "contents": _contents(drawings, short=short, published=bool(known), missing=bool(summary["missing"])),
        "summary": summary,
        "short": short,
        "rules": rule_rows(summary),
        "facts": facts,
        "figures": [PlacedFigure.of(drawing, f"{name}/{drawing.name}", data=True) for drawing in drawings],
        "locations": run.locations
        and {
            **location_facts(run.locations),
            "dims": location_dims(run.locations),
            "comparisons": list(location_comparisons(run.locations)),
        },
        "massive": {
            "rows": spans[:ROWS_WITHOUT_SCRIPTS],
            "packed": massive_rows(spans),
            "kept": len(spans),
            "hidden": in_all - len(spans),
            "activations": len(activations),
            "rules": [rule for rule in listing if applied_sites(summary, rule)],
            "sites": " + ".join(dict.fromkeys(site for rule in listing for site in applied_sites(summary, rule)))
            or "none",
        },
        "dims": {"rows": rows, "hidden": hidden},
        "ablations": {
            "ablation": ablations(summary["ablation"]) if summary["ablation"] else [],
            "expert-ablation": ablations(summary["expert_ablation"]) if summary["expert_ablation"] else [],
        },
        "published": known,
        "tables": [],
        "gallery": None,
        "provenance": provenance(summary),
    }


def _gallery(run: Run, manifest: Path | None, report: Path) -> dict[str, Any] | None:
    """Where a run's gallery is, seen from the report, and which pages it has; None where it has none."""
    if manifest is None:
        return None
    found = read_json(manifest, "neurons", "dims", "sequences")
    run.tokens.files.require(found, manifest)
    return {**found, "path": quote(str(manifest.parent.relative_to(report.parent)))}


def _contents(drawings: Sequence[Drawing], *, short: InShort, published: bool, missing: bool) -> list[tuple[str, str]]:
    """The sections of a run's page, their names and titles."""
    return [
        *([("missing", "What is missing")] if missing else []),
        *([("dimensions", "What stands out")] if short.profiles else []),
        ("not-found", "What was not found"),
        ("limits", "What the numbers do not mean"),
        ("rules-table", "Rules"),
        ("findings", "Findings, rule by rule"),
        *((drawing.name, drawing.title) for drawing in drawings),
        ("massive", "Massive activations"),
        *([("published", "What others printed")] if published else []),
        ("tables", "Tables"),
        ("provenance", "Provenance"),
    ]


def require_names(names: Sequence[str]) -> None:
    """Raise `InputError` where two runs have one name: a link to one of them would lead to the other."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"runs: {name} is there twice, expected each model and corpus once")


def _listed(frame: pl.DataFrame, table: Table) -> dict[str, Any]:
    """A table whole, packed, and its first rows as they stand in the page without scripts."""
    return {"rows": frame.head(ROWS_WITHOUT_SCRIPTS).to_dicts(), "packed": packed(frame, described(table))}
