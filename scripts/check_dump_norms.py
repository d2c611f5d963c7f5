from pathlib import Path

from outlier_features.check_dump_norms import check_dump_norms
from outlier_features.errors import stage

with stage(snakemake.log[0]):
    check_dump_norms(
        file=Path(snakemake.input.dump),
        keys=snakemake.params.gain_keys,
        dims=Path(snakemake.input.dims),
        norms=Path(snakemake.output.norms),
        gains=Path(snakemake.output.gains),
    )
