from pathlib import Path

from outlier_features.files.missing import optional_stage
from outlier_features.model.loading import loading_of

params = snakemake.params
with optional_stage("origin", snakemake, of=snakemake.input.dims) as wanted:
    if wanted:
        from outlier_features.origin.trace_origin import trace_origin

        trace_origin(
            **{name: Path(snakemake.input[name]) for name in ("source", "tokens", "texts", "dims", "massive")},
            **{name: Path(path) for name, path in snakemake.output.items()},
            wanted=params.dims,
            max_dims=params.max_dims,
            **loading_of(snakemake),
        )
