from pathlib import Path

from outlier_features.draw_figures import draw_figures
from outlier_features.errors import stage

with stage(snakemake.log[0]):
    draw_figures(
        run=Path(snakemake.input.summary).parent,
        template=Path(snakemake.input.template),
        directory=Path(snakemake.output.directory),
        formats=snakemake.params.formats,
        width_mm=snakemake.params.width_mm,
    )
