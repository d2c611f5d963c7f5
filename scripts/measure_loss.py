from pathlib import Path

from outlier_features.errors import stage
from outlier_features.files.missing import optional

with (
    stage(snakemake.log[0]),
    optional(
        "loss", snakemake.output, snakemake.log[0], of=snakemake.input.chunks[0], off=snakemake.params.off
    ) as wanted,
):
    if wanted:
        from outlier_features.extract.measure_loss import measure_loss

        measure_loss(
            chunks=[Path(path) for path in snakemake.input.chunks],
            tokens=Path(snakemake.input.tokens),
            loss=Path(snakemake.output.loss),
        )
