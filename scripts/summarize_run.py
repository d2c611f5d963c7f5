from pathlib import Path

from outlier_features.errors import stage
from outlier_features.summarize_run import summarize_run

with stage(snakemake.log[0]):
    summarize_run(
        **{name: Path(path) for name, path in snakemake.input.items()},
        summary=Path(snakemake.output.summary),
    )
