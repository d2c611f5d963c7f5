from pathlib import Path

from outlier_features.compare.compare_models import compare_models
from outlier_features.compare.failures import write_failures
from outlier_features.errors import stage

with stage(snakemake.log[0]):
    compare_models(
        runs=[Path(summary).parent for summary in snakemake.input.summaries],
        published=Path(snakemake.input.published[0]).parent,
        models=Path(snakemake.output.models),
        sources=dict(zip(snakemake.params.revisions, map(Path, snakemake.input.sources), strict=True)),
    )
    write_failures(snakemake.params.failed, Path(snakemake.output.failures))
