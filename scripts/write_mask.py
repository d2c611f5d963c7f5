from pathlib import Path

from outlier_features.dims.write_mask import write_mask
from outlier_features.errors import stage

with stage(snakemake.log[0]):
    write_mask(
        tokens=Path(snakemake.input.tokens),
        dims=Path(snakemake.input.dims),
        massive=Path(snakemake.input.massive),
        super_weights=Path(snakemake.input.super_weights) if snakemake.input.super_weights else None,
        mask=Path(snakemake.output.mask),
        schema=Path(snakemake.input.schema),
    )
