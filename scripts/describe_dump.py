from pathlib import Path

from outlier_features.dump.describe_dump import describe_dump
from outlier_features.errors import stage

params = snakemake.params
with stage(snakemake.log[0]):
    describe_dump(
        model=snakemake.wildcards.model,
        model_source=Path(snakemake.input.source),
        tokens=Path(snakemake.output.tokens),
        texts=Path(snakemake.output.texts),
        source=params.source,
        first_token=params.first_token,
        labels=params.labels,
        tokenizer=Path(params.tokenizer) if params.tokenizer else None,
    )
