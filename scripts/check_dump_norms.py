from pathlib import Path

from outlier_features.errors import stage
from outlier_features.norms.check_dump_norms import check_dump_norms

with stage(snakemake.log[0]):
    check_dump_norms(
        file=Path(snakemake.input.dump),
        keys=snakemake.params.gain_keys,
        dims=Path(snakemake.input.dims),
        norms=Path(snakemake.output.norms),
        gains=Path(snakemake.output.gains),
    )
