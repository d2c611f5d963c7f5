"""The site: `make docs-site`. Pages are Markdown as a repository shows it; a broken link fails the build."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = "outlier-features"
author = "the authors of outlier-features"
release = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]

extensions = ["myst_parser"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
exclude_patterns = ["_build"]
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_sphinx = False
