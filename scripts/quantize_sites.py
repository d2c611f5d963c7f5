from pathlib import Path

from outlier_features.files.missing import optional_stage
from outlier_features.model.loading import loading_of

params = snakemake.params
with optional_stage("quantization", snakemake, of=snakemake.input.dims) as wanted:
    if wanted:
        from outlier_features.quantize.quantize_sites import quantize_sites

        quantize_sites(
            **{name: Path(path) for name, path in snakemake.input.items()},
            **{name: Path(path) for name, path in snakemake.output.items()},
            schemes=params.schemes,
            remedied=params.remedied,
            output_tokens=params.output_tokens,
            seeds=params.seeds,
            batch_size=params.batch_size,
            **loading_of(snakemake),
        )
