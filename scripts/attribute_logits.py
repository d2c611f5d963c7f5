from pathlib import Path

from outlier_features.files.missing import optional_stage
from outlier_features.model.loading import loading_of

params = snakemake.params
with optional_stage("attribution", snakemake, of=snakemake.input.dims) as wanted:
    if wanted:
        from outlier_features.gallery.attribute_logits import attribute_logits

        attribute_logits(
            **{name: Path(path) for name, path in snakemake.input.items()},
            **{name: Path(path) for name, path in snakemake.output.items()},
            sequences=params.sequences,
            **loading_of(snakemake),
        )
