from pathlib import Path

from outlier_features.errors import stage
from outlier_features.run.summarize_costs import summarize_costs

with stage(snakemake.log[0]):
    summarize_costs(
        benchmarks=Path(snakemake.params.benchmarks),
        outputs=snakemake.params.outputs,
        costs=Path(snakemake.output.costs),
    )
