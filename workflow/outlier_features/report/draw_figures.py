"""Rule draw_figures: the figures of a run as files: a page each, the drawn data, and images for a paper."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from outlier_features.figures.images import for_paper, paper_pixels, titled, write_images
from outlier_features.figures.run_figures import run_figures
from outlier_features.figures.style import Drawing
from outlier_features.files.artifacts import replacing_directory, write_page
from outlier_features.files.export_tables import write_csv
from outlier_features.report.page_template import FIGURE_SCRIPTS, FOLDER, PLOTLY, Pages, PlacedFigure
from outlier_features.summary.report_run import Run

TEMPLATE = "figures.html.j2"


def draw_figures(run: Path, directory: Path, *, formats: Sequence[str], width_mm: float) -> None:
    """Write into `directory` the figures that the report shows of a run, see `write_directory`."""
    read = Run.read(run)
    name = f"{read.summary['model']['name']} on {read.summary['corpus']['name']}"
    write_directory(f"Figures of {name}", name, run_figures(read), directory, formats=formats, width_mm=width_mm)


def write_directory(
    title: str, subject: str, drawings: Sequence[Drawing], directory: Path, *, formats: Sequence[str], width_mm: float
) -> None:
    """Write into `directory`, for each of `drawings`:

    <name>.html                   a page with its caption and a view for each population
    <name>.csv                    what is drawn, where that is a table
    <name>.<population>.<format>  for each of `formats` (svg, pdf, png), to be read at `width_mm` or at a page's width,
                                  under its title and `subject`, what it is of

    and `index.html`, a list of them with a small picture of each, and what these pages load: `data/` and `page/`. A
    drawing without a view has no page; the list says why. Raises `InputError` where an image is asked for and cannot be
    drawn.
    """
    with replacing_directory(directory) as temporary:
        write_images(
            (
                (
                    temporary / f"{drawing.name}.{population}.{form}",
                    titled(for_paper(view), drawing.title, subject, width),
                    width,
                )
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
        (temporary / "page").mkdir()
        shutil.copyfile(FOLDER / PLOTLY, temporary / "page" / PLOTLY)
        _write_pages(title, drawings, temporary)


def _write_pages(title: str, drawings: Sequence[Drawing], directory: Path) -> None:
    pages = Pages()
    files = {
        drawing.name: sorted(file.name for file in directory.glob(f"{drawing.name}.*") if file.suffix != ".html")
        for drawing in drawings
    }
    placed = {
        drawing.name: PlacedFigure.beside(drawing, drawing.name, directory / "data", data=False)
        for drawing in drawings
        if drawing.views
    }
    for name, one in placed.items():
        page = pages.render(
            TEMPLATE, scripts=FIGURE_SCRIPTS, beside=True, title=f"{one.drawing.title}: {title}", back=title,
            placed=[one], files_of=files, listed=[],
        )  # fmt: skip
        write_page(directory / f"{name}.html", page)
    index = pages.render(
        TEMPLATE, scripts=FIGURE_SCRIPTS, beside=True, title=title, back="", placed=placed, files_of=files,
        listed=drawings,
    )  # fmt: skip
    write_page(directory / "index.html", index)


def write_figures(path: Path, title: str, drawings: Sequence[Drawing]) -> None:
    """Write figures as one page that is complete in itself, without a checksum."""
    placed = [PlacedFigure.inside(drawing, drawing.name) for drawing in drawings]
    page = Pages().render(
        TEMPLATE, scripts=(PLOTLY, *FIGURE_SCRIPTS), title=title, back="", placed=placed, files_of={}, listed=[],
    )  # fmt: skip
    path.write_text(page, encoding="utf-8")
