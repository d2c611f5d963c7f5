"""Figures as images, drawn by the package kaleido and the Chrome that it finds."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go

from outlier_features.errors import InputError
from outlier_features.figures.style import label
from outlier_features.files.artifacts import replacing
from outlier_features.progress import item_bar

PAGE_MM = 178  # the width of a paper's page, of two columns
_PIXEL = 25.4 / 96  # mm
_FONT = 8 / 9  # a figure's 12 pixels, which are 9 points, become 8 points; ticks 7.3, titles of panels 8.7
_SHARPNESS = 3  # of png: 324 pixels to the inch
_LEFT, _ABOVE, _LINE = 12, 10, 19  # pixels beside and above a title, and of a line of it
_TITLE_LETTER, _LETTER = 8.0, 6.4  # pixels of a letter, on average


def paper_pixels(width_mm: float, min_width: int) -> int:
    """The width at which a figure is laid out for a column of `width_mm`, with fonts of 7 to 9 points there.

    A figure that needs more pixels than the column has is laid out for the page.
    """
    column, page = (round(width / _PIXEL / _FONT) for width in (width_mm, PAGE_MM))
    return column if min_width <= column else max(column, page)


def for_paper(figure: go.Figure) -> go.Figure:
    """A copy without what only a screen has: of a menu the choice that is shown."""
    still = go.Figure(figure)
    for menu in still.layout.updatemenus:
        chosen = menu.buttons[menu.active or 0].label
        still.add_annotation(
            text=chosen, x=menu.x, y=menu.y, xanchor=menu.xanchor, yanchor=menu.yanchor, xref="paper", yref="paper",
            xshift=menu.pad.l or 0, showarrow=False,
        )  # fmt: skip
    still.layout.updatemenus = ()
    return still


def write_images(images: Iterable[tuple[Path, go.Figure, int]], asked: str) -> None:
    """Write each figure, laid out so many pixels wide, as its path's suffix says: `.svg`, `.pdf` or `.png`.

    asked   the config's key or the option that asks for images, for the message

    Raises `InputError` where kaleido or its Chrome is missing, or does not draw.
    """
    listed = list(images)
    if not listed:
        return
    where = f"{asked} asks for {listed[0][0].suffix[1:]}, which needs"
    try:
        import kaleido
        from kaleido.errors import ChromeNotFoundError
    except ImportError as error:
        raise InputError(f"{where} the package kaleido: pip install 'outlier-features[images]'") from error
    try:
        contents = asyncio.run(_draw(kaleido.Kaleido, listed))
    except (ChromeNotFoundError, FileNotFoundError) as error:
        raise InputError(
            f"{where} a Chrome or Chromium, and none was found: `apt-get install chromium` or `plotly_get_chrome` gets "
            "one, and the variable BROWSER_PATH names one that is elsewhere"
        ) from error
    except (RuntimeError, OSError, TimeoutError) as error:
        said = str(error.args[0] if error.args else type(error).__name__).splitlines()[0]
        raise InputError(f"{where} a Chrome or Chromium that draws; the one that was found did not: {said}") from error
    # After the drawing: what the disk refuses is no fault of the browser.
    for (path, _, _), content in zip(listed, contents, strict=True):
        with replacing(path) as temporary:
            temporary.write_bytes(content)


async def _draw(kaleido: Any, images: list[tuple[Path, go.Figure, int]]) -> list[bytes]:
    """One browser draws all."""
    drawn = []
    async with kaleido(mathjax=False) as browser:  # the labels have none, and it would come from the network
        for path, figure, width in item_bar(images, "draw", "image"):
            form = path.suffix[1:]
            scale = _SHARPNESS if form == "png" else _FONT
            options = {"format": form, "width": width, "height": figure.layout.height, "scale": scale}
            drawn.append(await browser.calc_fig(figure, opts=options))
    return drawn


def titled(figure: go.Figure, title: str, subject: str, width: int) -> go.Figure:
    """The figure, to be laid out `width` pixels wide, with its title above it, and below that what it is of: what
    stands beside a figure in a page, and is lost where an image is all that a reader has."""
    first, second = (
        [label(line) for line in wrap(text, max(12, int((width - 2 * _LEFT) / letter)))]
        for text, letter in ((title, _TITLE_LETTER), (subject, _LETTER))
    )
    lines = [
        *(f"<b>{line}</b>" for line in first),
        *(f'<span style="font-size: 12px">{line}</span>' for line in second),
    ]
    tall, short = _ABOVE + _LINE * len(lines), figure.layout.height
    height = short + tall
    whole = go.Figure(figure).update_layout(height=height, margin={"t": (figure.layout.margin.t or 0) + tall})
    whole.update_layout(
        title={
            "text": "<br>".join(lines), "font": {"size": 14}, "x": 0, "xanchor": "left", "pad": {"l": _LEFT},
            "y": 1 - (_ABOVE + _LINE) / height, "yanchor": "bottom", "yref": "container",  # of the first line
        }
    )  # fmt: skip
    holders = [whole.layout.coloraxis, *(trace for trace in whole.data if getattr(trace, "colorbar", None))]
    for bar in (holder.colorbar for holder in holders):
        if bar.yref == "container":  # as far from the bottom as before
            bar.y = bar.y * short / height
    return whole
