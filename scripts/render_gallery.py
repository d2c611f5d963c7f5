from pathlib import Path

from outlier_features.errors import stage
from outlier_features.files.missing import why_missing
from outlier_features.gallery.render_gallery import leave_out_gallery, render_gallery

run, folder = Path(snakemake.input.tokens).parent, Path(snakemake.output.manifest).parent
with stage(snakemake.log[0]):
    try:
        render_gallery(run, folder, source=Path(snakemake.input.source), published=Path(snakemake.input.published))
    except Exception as error:  # a run has its report without a gallery
        leave_out_gallery(run, folder, why_missing(error, "gallery", Path(snakemake.log[0])).sentence)
