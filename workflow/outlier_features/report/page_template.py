"""What all pages share: their templates, the scripts in them, and how a figure gets into a page."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape

from outlier_features.dim_marks import dim_mark, has_marks, marked_of, replace_dims, unmarked
from outlier_features.figures.style import Drawing
from outlier_features.populations import population_title, population_titles
from outlier_features.report.page_data import gzipped, inert_json, packed, write_data
from outlier_features.summary.glossary import TERMS, WORDS
from outlier_features.visible_text import shortened, visible
from outlier_features.wording import number, percent

FOLDER = Path(__file__).parent / "page"
PLOTLY = "plotly-cartesian.min.js"
FIGURE_SCRIPTS = ("load.js", "data.js", "figure.js")


class Pages:
    """Templates and scripts of a folder; what templates are given is text, and escaped.

    anchors   on a page with definitions the id of each by what it defines; without them nothing leads there
    """

    def __init__(self, folder: Path = FOLDER, anchors: Mapping[str, str] | None = None):
        self.folder = folder
        self.environment = Environment(
            loader=FileSystemLoader(folder),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_with_links,
        )
        self.environment.filters |= {
            "visible": lambda text: visible(marked_of(text)), "dim": dim_mark, "unmarked": unmarked,
            "population": population_title, "populations": population_titles,
            "shortened": shortened, "unbroken": unbroken, "number": number, "percent": percent,
            "script_hash": script_hash, "glossed": _glossed, "anchor": lambda rule: _anchor(rule, anchors or {}),
        }  # fmt: skip

    def render(self, template: str, *, scripts: Sequence[str], beside: bool = False, **facts: Any) -> str:
        """A page with these scripts inside it, and with `beside` also such that it loads: plotly's, and data.

        It loads nothing else, and runs no other script within it than those named there by their hashes.
        """
        theme, style, *own = (_text(self.folder / name) for name in ("theme.js", "report.css", *scripts))
        page = self.environment.get_template(template)
        return page.render(scripts=own, beside=beside, theme=theme, style=style, **facts)


@dataclass(frozen=True)
class PlacedFigure:
    """A drawing in a page.

    file       the name of the files that it is saved as, without their kind
    first      the view that is shown first, of `height` pixels
    views      each view's JSON, where it lies in the page
    ids        the ids of these, by view, as JSON
    titles     what readers call each view, as JSON
    has_data   whether the page can save what is drawn as CSV
    """

    drawing: Drawing
    id: str
    file: str
    first: str
    height: int
    views: Mapping[str, Markup]
    ids: str
    titles: str
    has_data: bool

    @classmethod
    def inside(cls, drawing: Drawing, place: str) -> "PlacedFigure":
        """With its views in the page, where its id is `place`."""
        return cls._of(drawing, place, {name: json_script(figure) for name, figure in drawing.views.items()}, False)

    @classmethod
    def beside(cls, drawing: Drawing, place: str, folder: Path, *, data: bool = True) -> "PlacedFigure":
        """With its views and, with `data`, what is drawn as files in `folder`: `<place>/<view>`, `<place>/data`."""
        for name, figure in drawing.views.items():
            write_data(folder, f"{place}/{name}", gzipped(str(figure.to_json(engine="json"))))
        has_data = data and drawing.data.width > 0
        if has_data:
            write_data(folder, f"{place}/data", packed(drawing.data))
        return cls._of(drawing, place, {}, has_data)

    @classmethod
    def _of(cls, drawing: Drawing, place: str, views: Mapping[str, Markup], has_data: bool) -> "PlacedFigure":
        first = next(iter(drawing.views), "")
        return cls(
            drawing,
            place,
            place.replace("/", "-"),
            first,
            drawing.views[first].layout.height or 450 if first else 0,
            views,
            json.dumps({name: f"{place}/{name}" for name in drawing.views}),
            json.dumps({name: population_title(name) for name in drawing.views}),
            has_data,
        )


@pass_context
def _with_links(context: Context, value: Any) -> Any:
    """What a template writes: of a text with dims each leads to the place that the part of the page has for it."""
    if not isinstance(value, str) or isinstance(value, Markup) or not has_marks(marked_of(value)):
        return value
    return _linked(context, str(escape(marked_of(value))))


def _linked(context: Context, text: str) -> Markup:
    """HTML in which each dim that is marked leads to its place."""
    places = (context.get("section") or {}).get("dim_places")

    def linked(dim: int) -> str:
        return f'<a class="dim" data-dim="{dim}" href="{escape(places.place(dim))}">{dim}</a>' if places else str(dim)

    return Markup(replace_dims(text, linked))


@cache
def _text(path: Path) -> Markup:
    """A script or style, read once for all pages."""
    return Markup(path.read_text(encoding="utf-8"))


def json_script(figure: go.Figure) -> Markup:
    return Markup(inert_json(json.loads(figure.to_json(engine="json"))))


def script_hash(text: str) -> str:
    """As the page's Content-Security-Policy names a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def unbroken(text: str) -> str:
    """A number and its unit on one line."""
    text = marked_of(text)
    return text.replace(" %", "\u00a0%").replace("x = ", "x\u00a0=\u00a0").replace("|x| >= ", "|x|\u00a0>=\u00a0")


_WORD = re.compile(rf"\b({'|'.join(sorted(map(re.escape, WORDS), key=len, reverse=True))})(s?)\b", re.IGNORECASE)


@pass_context
def _glossed(context: Context, text: str, seen: list[str]) -> Markup:
    return _linked(context, glossed(marked_of(text), seen))


def glossed(text: str, seen: list[str]) -> Markup:
    """Text in which a word that has not been `seen` yet brings its meaning, which the glossary has."""
    parts, end = [], 0
    for match in _WORD.finditer(text):
        term = WORDS[match[1].lower()]
        if term not in seen:
            seen.append(term)
            meaning = Markup('<span class="meaning" role="tooltip">{}</span>').format(unbroken(TERMS[term]))
            word = Markup('<span class="term" tabindex="0">{}{}</span>').format(match[0], meaning)
            parts += [escape(text[end : match.start()]), word]
            end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


def _anchor(rule: str, defined: Mapping[str, str]) -> str:
    """Where the first rule that a caption names is defined."""
    if rule in defined or not defined:
        return defined.get(rule, "")
    names = (word for word in re.findall(r"\w+", rule.replace("attention sink", "sinks")) if word in defined)
    return defined[next(names, "Sites")]
