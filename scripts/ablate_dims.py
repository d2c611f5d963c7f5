from pathlib import Path

from outlier_features.ablate.ablate_dims import ablate_dims
from outlier_features.errors import stage

params = snakemake.params
with stage(snakemake.log[0]):
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
        batch_size=params.batch_size,
        **params.loading,
    )
