from pathlib import Path

from outlier_features.files.missing import optional_stage
from outlier_features.model.loading import loading_of

params = snakemake.params
with optional_stage("attention_maps", snakemake, of=snakemake.input.layers) as wanted:
    if wanted:
        from outlier_features.attention.map_attention import map_attention

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
            **loading_of(snakemake),
        )
