"""Rule draw_figures: the figures of a run as files: a page each, the drawn data, and images for a paper."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from outlier_features.figures.images import for_paper, paper_pixels, write_images
from outlier_features.figures.run_figures import run_figures
from outlier_features.figures.style import Drawing
from outlier_features.files.artifacts import replacing_directory, write_page
from outlier_features.files.export_tables import write_csv
from outlier_features.report.page_template import PLOTLY, page_environment
from outlier_features.summary.report_run import Run

SCRIPTS = ("data.js", "figure.js")  # of the report, beside the template


def draw_figures(run: Path, template: Path, directory: Path, *, formats: Sequence[str], width_mm: float) -> None:
    """Write into `directory`, for each figure that the report shows of a run:

    <name>.html                   a page with its caption and a view for each population
    <name>.csv                    what is drawn, where that is a table
    <name>.<population>.<format>  for each of `formats` (svg, pdf, png), to be read at `width_mm` or at a page's width

    and `index.html`, a list of them, and `plotly-cartesian.min.js`, which the pages share. Raises `InputError` where an
    image is asked for and cannot be drawn.
    """
    read = Run.read(run)
    drawings = run_figures(read)
    name = f"{read.summary['model']['name']} on {read.summary['corpus']['name']}"
    with replacing_directory(directory) as temporary:
        write_images(
            (
                (temporary / f"{drawing.name}.{population}.{form}", for_paper(view), width)
                for drawing in drawings
                for width in [paper_pixels(width_mm, drawing.min_width)]
                for population, view in drawing.views.items()
                for form in formats
            ),
            "config: figures.formats",
        )
        for drawing in drawings:
            if not drawing.data.is_empty():
                with (temporary / f"{drawing.name}.csv").open("wb") as file:
                    write_csv(drawing.data, file, header=True)
        shutil.copyfile(template.parent / PLOTLY, temporary / PLOTLY)
        _write_pages(name, drawings, template, temporary)


def _write_pages(name: str, drawings: Sequence[Drawing], template: Path, directory: Path) -> None:
    page = page_environment(template.parent).get_template(template.name)
    files = {
        drawing.name: sorted(file.name for file in directory.glob(f"{drawing.name}.*") if file.suffix != ".html")
        for drawing in drawings
    }
    facts = {
        "run": name,
        "files": files,
        "ids": {drawing.name: json.dumps({view: f"view-{view}" for view in drawing.views}) for drawing in drawings},
        "scripts": [Markup((template.parent / script).read_text(encoding="utf-8")) for script in SCRIPTS],
    }
    for drawing in drawings:
        write_page(directory / f"{drawing.name}.html", page.render(shown=[drawing], index=False, **facts))
    write_page(directory / "index.html", page.render(shown=drawings, index=True, **facts))
