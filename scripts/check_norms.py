from pathlib import Path

from outlier_features.errors import stage
from outlier_features.files.missing import optional

with (
    stage(snakemake.log[0]),
    optional("norms", snakemake.output, snakemake.log[0], of=snakemake.input.dims, off=snakemake.params.off) as wanted,
):
    if wanted:
        from outlier_features.norms.check_norms import check_norms

        check_norms(
            losses=Path(snakemake.input.losses),
            dims=Path(snakemake.input.dims),
            norms=Path(snakemake.output.norms),
            gains=Path(snakemake.output.gains),
        )
