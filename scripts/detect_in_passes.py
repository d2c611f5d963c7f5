from pathlib import Path

from outlier_features.detect.detect_in_passes import detect_in_passes
from outlier_features.detect.detection import detection_of
from outlier_features.errors import stage
from outlier_features.model.loading import loading_of

params = snakemake.params
with stage(snakemake.log[0]):
    files, settings = detection_of(snakemake)
    detect_in_passes(
        source=Path(snakemake.input.source),
        tokens=Path(snakemake.input.tokens),
        losses=Path(snakemake.output.losses),
        neurons=Path(snakemake.output.neurons),
        channels=Path(snakemake.output.channels),
        files=files,
        settings=settings,
        start=params.start,
        stop=params.stop,
        first_stop=params.first_stop,
        sites=list(params.sites),
        batch_size=params.batch_size,
        sample=params.sample,
        ranking=params.ranking,
        recording=params.recording,
        scoring=params.scoring,
        log=Path(snakemake.log[0]),
        **loading_of(snakemake),
    )
