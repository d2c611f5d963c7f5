"""Rule render_report: a page for all runs and, beside it, what it loads when asked for; both open without a network."""

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl

from outlier_features.compare.differences import differences
from outlier_features.compare.failures import read_failures
from outlier_features.compare.first_steps_schema import FIRST_STEPS
from outlier_features.compare.models_schema import MODELS
from outlier_features.compare.published_numbers import published_numbers
from outlier_features.compare.revisions import same_weights
from outlier_features.dims.comparison_schema import COMPARED_DIMS, COMPARISON
from outlier_features.errors import DamagedFile, InputError
from outlier_features.figures.compared_runs import Compared
from outlier_features.figures.comparison_figures import comparison_figures
from outlier_features.figures.run_figures import CHAPTERS, CRITERIA, OVERVIEW, QUANTIZED, WHERE, run_figures
from outlier_features.figures.style import Drawing
from outlier_features.files.artifacts import read_json, replacing_directory, write_page
from outlier_features.files.tables import Table, read_table
from outlier_features.model_name import is_trained, split_name
from outlier_features.progress import item_bar
from outlier_features.published import published_facts
from outlier_features.report.compared_table import compared_table, first_steps_table
from outlier_features.report.definitions_page import anchors, definitions_page
from outlier_features.report.dim_places import DimPlaces
from outlier_features.report.location_tables import location_comparisons, location_dims, location_facts
from outlier_features.report.page_data import described, packed, write_data
from outlier_features.report.page_template import FOLDER, PLOTLY, Pages, PlacedFigure
from outlier_features.report.quantization_page import packed_layers, quantization_part
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
from outlier_features.summary.first_words import first_words
from outlier_features.summary.glossary import FOR_NEWCOMERS, LIMITS, TERMS
from outlier_features.summary.in_short import in_short
from outlier_features.summary.report_run import Run
from outlier_features.summary.run_rules import applied_sites, main_rules
from outlier_features.tokens.token_context import massive_spans

MASSIVE_ROWS = 1000
ROWS_WITHOUT_SCRIPTS = 50
DIM_ROWS = 20
DIM_PAIRS = 50_000  # of compared_dims, in which every two revisions of a model have rows
# Of the packed tables of a run; longer ones are cut, small ones whole.
TABLE_BYTES = 8_000_000
SCRIPTS = (
    "load.js",
    "state.js",
    "data.js",
    "figure.js",
    "filter.js",
    "table.js",
    "dim_figures.js",
    "dims.js",
    "dim_panel.js",
    "report.js",
)
# What chapters are about, in words; those of figures have their titles in `figures.run_figures`.
ABOUT = {
    "where": "In which layers, at which positions and at which tokens the large values are, and how large they are.",
    "why": "What writes the large values, what removes them, and what the norms make of them.",
    "attention": "How much attention the first and other tokens get, beside the massive activations of the same run.",
    "effect": "What happens to the model's predictions once large values, or parts of the model, are taken away.",
    "quantization": "What fewer bits do to linear layers, where, because of which dims, and which remedy pays.",
    "criteria": "What each rule looks for, what it found, and how that hangs on its thresholds.",
    "data": "What is missing, what the numbers do not mean, every table, and where all of it comes from.",
}


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
    """Write `report`, the page of all runs (directories `<results>/model/corpus`), and a directory of the same name
    without suffix beside it, all or nothing:

    data/       figures, their data and tables: small scripts, each loaded when the page shows it
    page/       plotly
    index.html  the page once more, for who takes the directory alone, as `snakemake --report` does

    published    directory of what papers and repositories printed, as CSV
    definitions  the Markdown document that says exactly what is measured, which becomes a page
    comparison   the directory of what compares the runs; None for one run
    costs        the table `costs`; without rows there is no page on them
    galleries    the manifests of the runs' galleries, which lie beside the report; none for a run without
    folder       of the templates

    Text from models and corpora is data: it is escaped in HTML and in plotly's labels, and packed in the scripts beside
    the page, which makes text nodes of it. Beyond that the page forbids itself to load anything from elsewhere and to
    run any script within it but its own, named by their hashes.
    """
    read = [Run.read(run) for run in item_bar(runs, "read", "run")]
    require_names([run.name for run in read])
    pages = Pages(folder, anchors(definitions))
    manifests = {"/".join(path.parent.parts[-2:]): path for path in galleries}
    places = {run.name: _gallery(run, manifests.get(run.name), report) for run in read}
    beside = report.with_suffix("")
    with replacing_directory(beside) as temporary:
        data = temporary / "data"
        sections = []
        for directory, run in zip(runs, item_bar(read, "render", "run"), strict=True):
            part = section(run, published, data, quantization_part(run, directory, report))
            part["gallery"] = places[run.name]
            part["dim_places"] = DimPlaces.of(run, part["gallery"])
            sections.append(part)
        facts = {
            "sections": sections,
            "populations": list(dict.fromkeys(name for run in read for name in run.populations)),
            "overview": overview([run.summary for run in read]),
            "failures": read_failures(comparison).to_dicts() if comparison else [],
            "overview_rules": overview_rules([run.summary for run in read]),
            "overview_words": overview_words([run.summary for run in read]),
            "definitions": definitions_page(definitions),
            "meanings": meanings([run.summary for run in read]),
            "terms": TERMS,
            "limits": LIMITS,
            "for_newcomers": FOR_NEWCOMERS,
            "comparison": _compared(comparison, read, published, data) if comparison else None,
            "costs": None if costs is None or costs.is_empty() else _listed(costs, COSTS, data, "costs"),
        }
        render = partial(pages.render, "report.html.j2", scripts=SCRIPTS, beside=True, **facts)
        page = render(folder=f"{quote(beside.name)}/", up="")
        write_page(temporary / "index.html", render(folder="", up="../"))
        (temporary / "page").mkdir()
        shutil.copyfile(FOLDER / PLOTLY, temporary / "page" / PLOTLY)
    write_page(report, page)


def _compared(comparison: Path, runs: Sequence[Run], published: Path, data: Path) -> dict[str, Any]:
    """What the templates show of the runs beside one another; what the page loads is written into `data`.

    Raises `DamagedFile` where it compares other runs.
    """
    models, provenance = read_table(comparison / "models.parquet", MODELS)
    names = [run.name for run in runs]
    if provenance["runs"] != names:
        path = comparison / "models.parquet"
        raise DamagedFile(path, f"expected a comparison of {', '.join(names)}, found {', '.join(provenance['runs'])}")
    layers = {run.name: run.tables["layers"] for run in runs}
    sinks = {run.name: run.tables["sinks"] for run in runs if run.maps}
    shown = Compared.of(models, [run.summary for run in runs], layers, sinks, published_numbers(published))
    drawings = comparison_figures(shown)
    steps = comparison / "first_steps.parquet"
    trained = None if shown.training.is_empty() else first_steps_table(read_table(steps, FIRST_STEPS)[0])
    table = compared_table(models)
    write_data(data, "comparison/models/rows", table["first"])
    write_data(data, "comparison/models/whole/rows", table["whole"])
    if trained:
        write_data(data, "comparison/first-steps/rows", trained["packed"])
    dim_by_dim = read_table(comparison / "compared_dims.parquet", COMPARED_DIMS)[0]
    if len(dim_by_dim):
        write_data(data, "comparison/compared-dims/rows", packed(dim_by_dim.head(DIM_PAIRS), described(COMPARED_DIMS)))
    apart = differences([run.summary for run in runs])
    revisions = models.drop_nulls("revision").select("model", "revision", "same_weights_as")
    return {
        "models": table,
        "same_weights": same_weights(revisions.unique(maintain_order=True).rows()),
        "first_steps": trained,
        "differences": {"settings": apart.columns[1:], "rows": apart.rows()},
        "dim_by_dim": {"rows": len(dim_by_dim), "shown": min(len(dim_by_dim), DIM_PAIRS)},
        "dims": _listed(read_table(comparison / "dims.parquet", COMPARISON)[0], COMPARISON, data, "comparison/dims"),
        "figures": [PlacedFigure.beside(drawing, f"comparison/{drawing.name}", data) for drawing in drawings],
        "contents": [("models", "All runs and rules"), ("differences", "What differs"),
                     *((one.name, one.title) for one in drawings),
                     *([("first-steps", "When each dimension first passes")] if trained else []),
                     ("dims", "Dimensions in common")],
    }  # fmt: skip


def section(run: Run, published: Path, data: Path, quantization: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the templates show of a run; what the page loads when it shows it is written into `data`.

    quantization   see `quantization_part`
    """
    summary = run.summary
    name = run.name
    main, listing = list(main_rules(summary)), listing_rules(summary["rules"])
    activations = run.tables["massive"].filter(pl.col("rule").is_in(listing))
    spans, in_all = massive_spans(activations, run.texts, run.tokens, MASSIVE_ROWS)
    rows, hidden = selected_dims(run.tables["dims"], main, DIM_ROWS)
    facts = facts_in(summary, run.tables)
    drawings, short = run_figures(run), in_short(summary, facts)
    write_data(data, f"{name}/massive/rows", massive_rows(spans))
    if quantization and quantization["scheme"]:
        layers = packed_layers(run.tables["quantization"], quantization["scheme"])
        write_data(data, f"{name}/linear-layers/rows", layers)
    tables = browsed_tables(run, TABLE_BYTES)
    for table in tables:
        write_data(data, f"{name}/tables/{table.name}/rows", table.packed)
    trained = is_trained(split_name(summary["model"]["name"])[1])
    known = published_facts(published, summary["model"]["kind"], summary["model"]["origin"] or "") if trained else []
    return {
        "id": name,
        "file": name.replace("/", "-"),
        "chapters": [*_chapters(run, drawings, data, published=bool(known), quantization=quantization)],
        "summary": summary,
        "first": first_words(summary, run.tables),
        "figures": [_placed(run, drawing, data) for drawing in drawings if drawing.chapter == OVERVIEW],
        "short": short,
        "rules": rule_rows(summary),
        "facts": facts,
        "locations": run.locations
        and {
            **location_facts(run.locations),
            "dims": location_dims(run.locations),
            "comparisons": list(location_comparisons(run.locations)),
        },
        "massive": {
            "rows": spans[:ROWS_WITHOUT_SCRIPTS],
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
        "quantization": quantization,
        "tables": tables,
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


def _chapters(
    run: Run, drawings: Sequence[Drawing], data: Path, *, published: bool, quantization: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """The pages of a run after its overview: what each is about, its figures, and its sections with their titles."""
    before = {CRITERIA: [("rules-table", "Rules"), ("findings", "Findings, rule by rule")]}
    after = {
        WHERE: [("massive", "Massive activations")],
        QUANTIZED: quantization["contents"] if quantization else [],
        CRITERIA: [("published", "What others printed")] if published else [],
    }
    for name, title in CHAPTERS.items():
        if name == OVERVIEW:
            continue
        figures = [drawing for drawing in drawings if drawing.chapter == name]
        contents = [
            *before.get(name, []),
            *((drawing.name, drawing.title) for drawing in figures),
            *after.get(name, []),
        ]
        if contents:
            placed = [_placed(run, drawing, data) for drawing in figures]
            yield {"name": name, "title": title, "about": ABOUT[name], "figures": placed, "contents": contents}
    contents = [
        *([("missing", "What is missing")] if run.summary["missing"] else []),
        ("limits", "What the numbers do not mean"),
        ("tables", "Tables"),
        ("provenance", "Provenance"),
    ]
    yield {
        "name": "data", "title": "Data and provenance", "about": ABOUT["data"], "figures": [], "contents": contents,
    }  # fmt: skip


def _placed(run: Run, drawing: Drawing, data: Path) -> PlacedFigure:
    return PlacedFigure.beside(drawing, f"{run.name}/{drawing.name}", data)


def require_names(names: Sequence[str]) -> None:
    """Raise `InputError` where two runs have one name: a link to one of them would lead to the other."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"runs: {name} is there twice, expected each model and corpus once")


def _listed(frame: pl.DataFrame, table: Table, data: Path, name: str) -> dict[str, Any]:
    """The first rows of a table as they stand in the page without scripts; all of it is written into `data`."""
    write_data(data, f"{name}/rows", packed(frame, described(table)))
    return {"rows": frame.head(ROWS_WITHOUT_SCRIPTS).to_dicts()}
