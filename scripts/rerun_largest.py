from pathlib import Path

from outlier_features.errors import stage
from outlier_features.files.missing import optional
from outlier_features.model.loading import loading_of

params = snakemake.params
with (
    stage(snakemake.log[0]),
    optional("surface", snakemake.output, snakemake.log[0], of=snakemake.input.statistics, off=params.off) as wanted,
):
    if wanted:
        from outlier_features.surface.rerun_largest import rerun_largest

        rerun_largest(
            **{name: Path(snakemake.input[name]) for name in ("source", "tokens", "statistics")},
            activations=Path(snakemake.output.activations),
            **loading_of(snakemake),
        )
