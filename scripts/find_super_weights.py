from pathlib import Path

from outlier_features.ablate.find_super_weights import find_super_weights
from outlier_features.errors import stage

params = snakemake.params
with stage(snakemake.log[0]):
    find_super_weights(
        source=Path(snakemake.input.source),
        tokens=Path(snakemake.input.tokens),
        loss=Path(snakemake.input.loss),
        published=Path(snakemake.input.published),
        super_weights=Path(snakemake.output.super_weights),
        sequences=params.sequences,
        length=params.length,
        threshold=params.threshold,
        rounds=params.rounds,
        **params.loading,
    )
