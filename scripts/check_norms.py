from pathlib import Path

from outlier_features.files.missing import optional_stage

with optional_stage("norms", snakemake, of=snakemake.input.dims) as wanted:
    if wanted:
        from outlier_features.norms.check_norms import check_norms

        check_norms(
            losses=Path(snakemake.input.losses),
            dims=Path(snakemake.input.dims),
            norms=Path(snakemake.output.norms),
            gains=Path(snakemake.output.gains),
        )
