from pathlib import Path

from outlier_features.files.missing import optional_stage
from outlier_features.model.loading import loading_of

params = snakemake.params
with optional_stage("knock_outs", snakemake, of=snakemake.input.dims) as wanted:
    if wanted:
        from outlier_features.ablate.knock_out import knock_out

        knock_out(
            **{name: Path(path) for name, path in snakemake.input.items()},
            **{name: Path(path) for name, path in snakemake.output.items()},
            sequences=params.sequences,
            length=params.length,
            cost=params.cost,
            batch_size=params.batch_size,
            **loading_of(snakemake),
        )
