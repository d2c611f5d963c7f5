"""Rule list_galleries: the page that leads to the galleries of all runs."""

from collections.abc import Sequence
from pathlib import Path

from outlier_features.files.artifacts import read_json, write_page
from outlier_features.gallery.gallery_pages import FOLDER
from outlier_features.report.page_template import FOLDER as REPORT
from outlier_features.report.page_template import Pages


def list_galleries(manifests: Sequence[Path], index: Path) -> None:
    """Write a page with a link to each gallery, whose folders lie beside it in `<model>/<corpus>`."""
    runs = [
        {"path": str(path.parent.relative_to(index.parent)), **read_json(path, "neurons", "dims", "sequences")}
        for path in manifests
    ]
    style = (REPORT / "report.css").read_text(encoding="utf-8")
    write_page(index, Pages(FOLDER).environment.get_template("galleries.html.j2").render(runs=runs, style=style))
