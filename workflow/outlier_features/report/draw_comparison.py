"""Rule draw_comparison: the figures of the comparison of runs as files."""

from collections.abc import Sequence
from pathlib import Path

from outlier_features.attention.sinks_schema import SINKS
from outlier_features.compare.models_schema import MODELS
from outlier_features.compare.published_numbers import published_numbers
from outlier_features.detect.layers_schema import LAYERS
from outlier_features.errors import DamagedFile
from outlier_features.figures.compared_runs import Compared
from outlier_features.figures.comparison_figures import comparison_figures
from outlier_features.files.artifacts import read_json
from outlier_features.files.tables import read_table
from outlier_features.report.draw_figures import write_directory
from outlier_features.summary.summarize_run import SUMMARY_KEYS
from outlier_features.wording import some


def draw_comparison(
    runs: Sequence[Path], models: Path, published: Path, directory: Path, *, formats: Sequence[str], width_mm: float
) -> None:
    """Write the figures that the report shows of all `runs` together, see `draw_figures.write_directory`.

    runs        directories `<results>/<model>/<corpus>`
    models      the table of rule compare_models
    published   directory of what papers and repositories printed, as CSV

    Raises `DamagedFile` where the table is of other runs.
    """
    summaries = {name_of(run): read_json(run / "summary.json", *SUMMARY_KEYS) for run in runs}
    rows, provenance = read_table(models, MODELS)
    if provenance["runs"] != [*summaries]:
        raise DamagedFile(models, f"expected a comparison of {', '.join(summaries)}, found {provenance['runs']}")
    layers = {name_of(run): read_table(run / "layers.parquet", LAYERS)[0] for run in runs}
    sinks = {
        name: read_table(run / "sinks.parquet", SINKS)[0]
        for run, (name, summary) in zip(runs, summaries.items(), strict=True)
        if "sinks" in summary["tables"] and "attention_maps" not in summary["missing"]
    }
    compared = Compared.of(rows, [*summaries.values()], layers, sinks, published_numbers(published))
    write_directory(
        "Figures that compare the runs", some([*summaries]), comparison_figures(compared), directory, formats=formats,
        width_mm=width_mm,
    )  # fmt: skip


def name_of(run: Path) -> str:
    """`model/corpus`."""
    return f"{run.parent.name}/{run.name}"
