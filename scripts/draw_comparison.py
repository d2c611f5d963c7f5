from pathlib import Path

from outlier_features.errors import stage
from outlier_features.report.draw_comparison import draw_comparison

with stage(snakemake.log[0]):
    draw_comparison(
        runs=[Path(summary).parent for summary in snakemake.input.summaries],
        models=Path(snakemake.input.models),
        published=Path(snakemake.input.published[0]).parent,
        directory=Path(snakemake.output.directory),
        formats=snakemake.params.formats,
        width_mm=snakemake.params.width_mm,
    )
