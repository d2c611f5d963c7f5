"""Rule render_report: one HTML file for all runs, complete in itself, that opens without a network."""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from outlier_features.artifacts import write_page
from outlier_features.figure_dimension_map import TWO_RULES
from outlier_features.figures import run_figures
from outlier_features.findings import applied_sites, findings
from outlier_features.location_tables import location_comparisons, location_dims, location_facts
from outlier_features.progress import item_bar
from outlier_features.published import published_facts
from outlier_features.report_run import Run
from outlier_features.report_tables import ablations, headline, overview, provenance, selected_dims
from outlier_features.tables import (
    COMPARISON,
    read_table,
)
from outlier_features.token_context import massive_spans
from outlier_features.visible_text import visible
from outlier_features.wording import number, percent

MASSIVE_ROWS = 50
DIM_ROWS = 20


def render_report(
    runs: Sequence[Path], template: Path, style: Path, report: Path, *, published: Path, comparison: Path | None = None
) -> None:
    """Write `report` from a Jinja template, with a section for each run (a directory `<results>/model/corpus`).

    published    directory of what papers and repositories printed, as CSV
    comparison   the table of dims that two runs have in common; None for one run

    Text from models and corpora is data: it is escaped in HTML, in plotly's labels and in the figures' JSON. Beyond
    that the page forbids itself to load anything and to run any script but its own two, named by their hashes.
    """
    read = [Run.read(run) for run in item_bar(runs, "read", "run")]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "visible": visible, "number": number, "percent": percent, "json_script": json_script,
        "unbroken": unbroken, "script_hash": script_hash,
    }  # fmt: skip
    page = environment.from_string(template.read_text(encoding="utf-8")).render(
        sections=[section(run, index, published) for index, run in enumerate(item_bar(read, "render", "run"), start=1)],
        overview=overview([run.summary for run in read]) if len(read) > 1 else [],
        common=read_table(comparison, COMPARISON)[0].to_dicts() if comparison else [],
        style=Markup(style.read_text(encoding="utf-8")),
        plotly_js=Markup(get_plotlyjs()),
    )
    write_page(report, page)


def section(run: Run, index: int, published: Path) -> dict[str, Any]:
    """What the template shows of a run."""
    spans, in_all = massive_spans(run.tables["massive"], run.texts, run.tokens, MASSIVE_ROWS)
    rows, hidden = selected_dims(run.tables["dims"], TWO_RULES, DIM_ROWS)
    return {
        "id": f"run-{index}",
        "summary": run.summary,
        "headline": headline(run.summary),
        "applied": [rule for rule in TWO_RULES if applied_sites(run.summary, rule)],
        "findings": findings(run.summary),
        "figures": run_figures(run),
        "locations": run.locations
        and {
            **location_facts(run.locations),
            "dims": location_dims(run.locations),
            "comparisons": list(location_comparisons(run.locations)),
        },
        "massive": {"rows": spans, "hidden": in_all - len(spans), "activations": len(run.tables["massive"])},
        "dims": {"rows": rows, "hidden": hidden},
        "ablations": ablations(run.summary["ablation"]) if run.summary["ablation"] else [],
        "published": published_facts(published, run.summary["model"]["kind"], run.summary["model"]["origin"] or ""),
        "provenance": provenance(run.summary),
    }


def json_script(figure: go.Figure) -> Markup:
    """A figure as JSON that no parser of HTML or JavaScript can take for anything else."""
    text = json.dumps(json.loads(figure.to_json(engine="json")), ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def script_hash(text: str) -> str:
    """As the page's Content-Security-Policy names a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def unbroken(text: str) -> str:
    """A number and its unit on one line."""
    return text.replace(" %", "\u00a0%").replace("x = ", "x\u00a0=\u00a0").replace("|x| >= ", "|x|\u00a0>=\u00a0")
