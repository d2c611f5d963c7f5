from pathlib import Path

from outlier_features.files.missing import optional_stage
from outlier_features.model.loading import loading_of

with optional_stage("surface", snakemake, of=snakemake.input.statistics) as wanted:
    if wanted:
        from outlier_features.surface.rerun_largest import rerun_largest

        rerun_largest(
            **{name: Path(snakemake.input[name]) for name in ("source", "tokens", "statistics")},
            activations=Path(snakemake.output.activations),
            **loading_of(snakemake),
        )
