"""A folder of pages: their templates, the style and scripts that they share, and the data that each loads."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlier_features.files.artifacts import sealed_page
from outlier_features.report.page_data import write_data
from outlier_features.report.page_template import FOLDER as REPORT
from outlier_features.report.page_template import Pages

FOLDER = Path(__file__).parent / "page"
FROM_REPORT = ("theme.js", "load.js", "data.js", "filter.js", "table.js", "report.css")


class GalleryPages:
    """A folder of pages with the style and scripts that they share, into which pages and their data are written.

    home   where links to other pages lead, seen from this folder; nothing where these lie in it too; None where there
           are no others
    """

    def __init__(self, folder: Path, home: str | None = ""):
        self.folder, self.home = folder, home
        self.environment = Pages(FOLDER).environment
        for name in ("page", "data"):
            (folder / name).mkdir(exist_ok=True)
        for path in (*(REPORT / name for name in FROM_REPORT), *FOLDER.glob("*.js"), *FOLDER.glob("*.css")):
            shutil.copyfile(path, folder / "page" / path.name)

    def page(self, kind: str, name: str, data: Mapping[str, Any], title: str) -> None:
        """A page, and what it shows."""
        self.write(f"{name}.html", "shell.html.j2", kind=kind, name=name, title=title)
        self.data(name, data)

    def write(self, file: str, template: str, **facts: Any) -> None:
        html = self.environment.get_template(template).render(home=self.home, **facts)
        (self.folder / file).write_bytes(sealed_page(html))

    def data(self, name: str, content: Any) -> None:
        write_data(self.folder / "data", name, content)
