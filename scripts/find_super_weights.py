from pathlib import Path

from outlier_features.errors import stage
from outlier_features.files.missing import optional
from outlier_features.model.loading import loading_of

params = snakemake.params
with (
    stage(snakemake.log[0]),
    optional("super_weights", snakemake.output, snakemake.log[0], of=snakemake.input.loss, off=params.off) as wanted,
):
    if wanted:
        from outlier_features.ablate.find_super_weights import find_super_weights

        find_super_weights(
            source=Path(snakemake.input.source),
            tokens=Path(snakemake.input.tokens),
            loss=Path(snakemake.input.loss),
            published=Path(snakemake.input.published),
            super_weights=Path(snakemake.output.super_weights),
            length=params.length,
            threshold=params.rule and params.rule["threshold"],
            rounds=params.rule and params.rule["rounds"],
            **loading_of(snakemake),
        )
