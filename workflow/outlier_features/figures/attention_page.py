"""Figures of attention as one page that needs no network, or each with its title."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import plotly.graph_objects as go

# The page may run the scripts inside it, and load nothing.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_BUTTONS = [["toImage", "zoom2d", "pan2d", "resetScale2d"]]  # plotly's own choice has one that uploads the figure


def write_page(path: Path, figures: Sequence[tuple[str, go.Figure]]) -> None:
    """Write figures with their titles as one HTML file."""
    config = {"displaylogo": False, "plotlyServerURL": "", "modeBarButtons": _BUTTONS}
    parts = [
        f"<h2>{escape(title)}</h2>\n"
        + figure.to_html(full_html=False, include_plotlyjs=index == 0, include_mathjax=False, config=config)
        for index, (title, figure) in enumerate(figures)
    ]
    path.write_text(
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n<title>Attention patterns</title>\n'
        "<style>body { font: 15px/1.5 Helvetica, Arial, sans-serif; margin: 24px }</style>\n</head>\n<body>\n"
        "<h1>Attention patterns</h1>\n<p>Probability that each query (row) gives each key (column); colours go by its "
        "square root. White is exactly 0.</p>\n" + "\n".join(parts) + "\n</body>\n</html>\n",
        encoding="utf-8",
    )


def titled(title: str, figure: go.Figure) -> go.Figure:
    """The figure with its title above it, for an image."""
    return go.Figure(figure).update_layout(
        title={"text": title, "x": 0.02, "font": {"size": 15}},
        height=figure.layout.height + 30,
        margin={"t": figure.layout.margin.t + 30},
    )
