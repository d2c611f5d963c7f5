"""The page of the report that says exactly what every number means: docs/definitions.md."""

import re
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

PAGE = "definitions"


def definitions_page(document: Path) -> Markup:
    """The document as HTML without its title; each heading has an id, `definitions/rule-dettmers` for example."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(document.read_text(encoding="utf-8"))
    for opening, inline in _headings(tokens):
        opening.attrSet("id", f"{PAGE}/{slug(inline.content)}")
        opening.tag = f"h{min(6, int(opening.tag[1]) + 1)}"  # h1 is the report's own title
    for closing in (token for token in tokens if token.type == "heading_close"):
        closing.tag = f"h{min(6, int(closing.tag[1]) + 1)}"
    title = next((i for i, token in enumerate(tokens) if token.type == "heading_close"), -1)
    return Markup(markdown.renderer.render(tokens[title + 1 :], markdown.options, {}))


def anchors(document: Path) -> dict[str, str]:
    """The ids of headings by what they have in code marks, as `dettmers` in "Rule `dettmers`", else by their text."""
    tokens = MarkdownIt("commonmark").parse(document.read_text(encoding="utf-8"))
    found: dict[str, str] = {}
    for _, inline in _headings(tokens):
        names = re.findall("`([^`]+)`", inline.content) or [inline.content]
        found |= {name: f"{PAGE}/{slug(inline.content)}" for name in names}
    return found


def slug(heading: str) -> str:
    return re.sub("[^a-z0-9]+", "-", heading.lower().replace("`", "")).strip("-")


def _headings(tokens: list[Token]) -> list[tuple[Token, Token]]:
    """The token that opens each heading, and its text."""
    return [(token, tokens[i + 1]) for i, token in enumerate(tokens) if token.type == "heading_open"]
