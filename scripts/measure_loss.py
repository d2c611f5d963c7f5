from pathlib import Path

from outlier_features.files.missing import optional_stage

with optional_stage("loss", snakemake, of=snakemake.input.chunks[0]) as wanted:
    if wanted:
        from outlier_features.extract.measure_loss import measure_loss

        measure_loss(
            chunks=[Path(path) for path in snakemake.input.chunks],
            tokens=Path(snakemake.input.tokens),
            loss=Path(snakemake.output.loss),
            token_losses=Path(snakemake.output.token_losses),
        )
