from pathlib import Path

from outlier_features.errors import stage
from outlier_features.gallery.list_galleries import list_galleries

with stage(snakemake.log[0]):
    list_galleries([Path(manifest) for manifest in snakemake.input.galleries], Path(snakemake.output.index))
