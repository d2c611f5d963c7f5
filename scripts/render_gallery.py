from pathlib import Path

from outlier_features.errors import stage
from outlier_features.gallery.render_gallery import render_gallery

with stage(snakemake.log[0]):
    render_gallery(
        run=Path(snakemake.input.tokens).parent,
        folder=Path(snakemake.output.manifest).parent,
        source=Path(snakemake.input.source),
    )
