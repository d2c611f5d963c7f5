"""A folder of pages: their templates, the style and scripts that they share, and the data that each loads."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlier_features.files.artifacts import sealed_page, sealed_script
from outlier_features.report.page_template import FOLDER as REPORT
from outlier_features.report.page_template import Pages

FOLDER = Path(__file__).parent / "page"
FROM_REPORT = ("theme.js", "data.js", "table.js", "report.css")


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
        (self.folder / "data" / f"{name}.js").write_bytes(sealed_script(data_script(name, content)))


def data_script(name: str, content: Any) -> str:
    """A script that hands data to the page; text in it is text to any reader of HTML or JavaScript."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=list)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f"gallery.take({json.dumps(name)},{text});\n"
