from pathlib import Path

from outlier_features.dims.analyze_emergence import analyze_emergence
from outlier_features.errors import stage

with stage(snakemake.log[0]):
    analyze_emergence(
        pairs=Path(snakemake.input.pairs),
        statistics=Path(snakemake.input.statistics),
        dims=Path(snakemake.output.dims),
        emergence=Path(snakemake.output.emergence),
    )
