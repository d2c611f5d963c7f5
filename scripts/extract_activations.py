from pathlib import Path

from outlier_features.errors import stage
from outlier_features.extract.extract_activations import extract_activations
from outlier_features.model.loading import loading_of

params = snakemake.params
with stage(snakemake.log[0]):
    extract_activations(
        source=Path(snakemake.input.source),
        tokens=Path(snakemake.input.tokens),
        activations=Path(snakemake.output.activations),
        losses=Path(snakemake.output.losses),
        neurons=Path(snakemake.output.neurons),
        channels=Path(snakemake.output.channels),
        start=params.start,
        stop=params.stop,
        sites=list(params.sites),
        batch_size=params.batch_size,
        **loading_of(snakemake),
        sample=params.sample,
        ranking=params.ranking,
        recording=params.recording,
        scoring=params.scoring,
        log=Path(snakemake.log[0]),
    )
