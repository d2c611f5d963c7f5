from pathlib import Path

from outlier_features.errors import stage
from outlier_features.extract.measure_loss import measure_loss

with stage(snakemake.log[0]):
    measure_loss(
        chunks=[Path(path) for path in snakemake.input.chunks],
        tokens=Path(snakemake.input.tokens),
        loss=Path(snakemake.output.loss),
    )
