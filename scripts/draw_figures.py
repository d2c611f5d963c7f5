from pathlib import Path

from outlier_features.errors import stage
from outlier_features.report.draw_figures import draw_figures

with stage(snakemake.log[0]):
    draw_figures(
        run=Path(snakemake.input.summary).parent,
        directory=Path(snakemake.output.directory),
        formats=snakemake.params.formats,
        width_mm=snakemake.params.width_mm,
    )
