from pathlib import Path

from outlier_features.files.missing import optional_stage
from outlier_features.model.loading import loading_of

params = snakemake.params
with optional_stage("quantization_losses", snakemake, of=snakemake.input.dims) as wanted:
    if wanted:
        from outlier_features.quantize.quantize_model import quantize_model

        quantize_model(
            **{name: Path(path) for name, path in snakemake.input.items()},
            **{name: Path(path) for name, path in snakemake.output.items()},
            schemes=params.schemes,
            remedied=params.remedied,
            loss_scheme=params.loss_scheme,
            budget=params.budget,
            seeds=params.seeds,
            sequences=params.sequences,
            length=params.length,
            batch_size=params.batch_size,
            **loading_of(snakemake),
        )
