from pathlib import Path

from outlier_features.errors import stage
from outlier_features.fetch.evict_weights import evict_weights

with stage(snakemake.log[0]):
    evict_weights(
        source=dict(snakemake.params.source),
        model_source=Path(snakemake.input.source),
        evicted=Path(snakemake.output.evicted),
    )
