from pathlib import Path

from outlier_features.attention.map_attention import map_attention
from outlier_features.errors import stage

params = snakemake.params
with stage(snakemake.log[0]):
    map_attention(
        source=Path(snakemake.input.source),
        tokens=Path(snakemake.input.tokens),
        layers=Path(snakemake.input.layers),
        sinks=Path(snakemake.output.sinks),
        maps=Path(snakemake.output.attention),
        sequences=params.sequences,
        positions=params.positions,
        threshold=params.threshold,
        kept_sequences=params.kept_sequences,
        kept_layers=list(params.kept_layers),
        **params.loading,
    )
