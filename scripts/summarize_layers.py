from pathlib import Path

from outlier_features.detect.summarize_layers import summarize_layers
from outlier_features.errors import stage

with stage(snakemake.log[0]):
    summarize_layers(
        chunks=[Path(path) for path in snakemake.input.chunks],
        statistics=Path(snakemake.output.statistics),
        layers=Path(snakemake.output.layers),
        distribution=Path(snakemake.output.distribution),
        site_positions=Path(snakemake.output.site_positions),
    )
