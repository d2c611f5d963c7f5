from pathlib import Path

from outlier_features.errors import stage
from outlier_features.files.missing import optional
from outlier_features.model.loading import loading_of

params = snakemake.params
with (
    stage(snakemake.log[0]),
    optional("ablation", snakemake.output, snakemake.log[0], of=snakemake.input.dims, off=params.off) as wanted,
):
    if wanted:
        from outlier_features.ablate.ablate_dims import ablate_dims

        ablate_dims(
            source=Path(snakemake.input.source),
            tokens=Path(snakemake.input.tokens),
            dims=Path(snakemake.input.dims),
            super_weights=Path(snakemake.input.super_weights),
            ablation=Path(snakemake.output.ablation),
            ablation_sequences=Path(snakemake.output.ablation_sequences),
            sequences=params.sequences,
            length=params.length,
            seeds=params.seeds,
            cost=params.cost,
            batch_size=params.batch_size,
            **loading_of(snakemake),
        )
