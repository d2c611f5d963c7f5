"""Write docs/figures.md and its pictures from a finished run, one with `quantize.losses: true`:

python docs/draw_figures_page.py RUN
"""

import sys
from pathlib import Path

import outlier_features as of
from outlier_features.figures.images import for_paper, write_images

DOCS = Path(__file__).parent
PICTURES = DOCS / "figures"
WIDTH = 720  # pixels


def draw_page(run: of.Run) -> None:
    """A picture of each figure's first view, beneath its title and above its caption."""
    drawn = {name: figure for name, figure in run.figures.items() if figure.views}
    for old in PICTURES.glob("*.webp"):
        old.unlink()
    PICTURES.mkdir(exist_ok=True)
    views = {name: for_paper(next(iter(figure.views.values()))) for name, figure in drawn.items()}
    write_images(
        [(PICTURES / f"{name}.webp", view, max(WIDTH, drawn[name].min_width)) for name, view in views.items()], "docs"
    )
    model, corpus = run.summary["model"], run.summary["corpus"]
    parts = [
        "# Figures\n\n"
        f"Made by `docs/draw_figures_page.py` from a run of {model['name']} on {corpus['name']} "
        f"({corpus['sequences']} x {corpus['sample']['tokens']} tokens); do not edit. In the report they can be "
        "zoomed, name what the pointer is at, and have a view for each population. `snakemake figures` leaves each as "
        "a file, "
        "`run.figure(name)` gives it in a [notebook](library.md).\n"
    ]
    parts += [
        f"\n## {figure.title}\n\n`{name}`\n\n![{figure.title}](figures/{name}.webp)\n\n{figure.text}\n"
        for name, figure in drawn.items()
    ]
    (DOCS / "figures.md").write_text("".join(parts), encoding="utf-8")


if __name__ == "__main__":
    draw_page(of.open(sys.argv[1]))
