from pathlib import Path

from outlier_features.files.missing import optional_stage
from outlier_features.model.loading import loading_of

params = snakemake.params
with optional_stage("gallery", snakemake, of=snakemake.input.dims) as wanted:
    if wanted:
        from outlier_features.gallery.record_examples import record_examples

        record_examples(
            **{name: Path(path) for name, path in snakemake.input.items()},
            **{name: Path(path) for name, path in snakemake.output.items()},
            wanted=params.neurons,
            kurtosis=params.kurtosis,
            most_dims=params.dims,
            sequences=params.sequences,
            seed=params.seed,
            **loading_of(snakemake),
        )
