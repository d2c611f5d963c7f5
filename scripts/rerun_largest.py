from pathlib import Path

from outlier_features.errors import stage
from outlier_features.files.missing import optional
from outlier_features.model.loading import loading_of
from outlier_features.surface.rerun_largest import rerun_largest

params = snakemake.params
with stage(snakemake.log[0]):
    run = optional(
        rerun_largest, "surface", snakemake.output, snakemake.log[0], of=snakemake.input.statistics, off=params.off
    )
    run(
        **{name: Path(snakemake.input[name]) for name in ("source", "tokens", "statistics")},
        activations=Path(snakemake.output.activations),
        **loading_of(snakemake),
    )
