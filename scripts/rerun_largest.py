from pathlib import Path

from outlier_features.errors import stage
from outlier_features.surface.rerun_largest import rerun_largest

params = snakemake.params
with stage(snakemake.log[0]):
    rerun_largest(
        **{name: Path(snakemake.input[name]) for name in ("source", "tokens", "statistics")},
        activations=Path(snakemake.output.activations),
        **params.loading,
    )
