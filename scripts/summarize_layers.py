from pathlib import Path

from outlier_features.errors import stage
from outlier_features.summarize_layers import summarize_layers

with stage(snakemake.log[0]):
    summarize_layers(
        chunks=[Path(path) for path in snakemake.input.chunks],
        statistics=Path(snakemake.output.statistics),
        layers=Path(snakemake.output.layers),
        distribution=Path(snakemake.output.distribution),
    )
