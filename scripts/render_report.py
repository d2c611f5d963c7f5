from pathlib import Path

from outlier_features.errors import stage
from outlier_features.report.render_report import render_report
from outlier_features.run.summarize_costs import read_costs

with stage(snakemake.log[0]):
    render_report(
        runs=[Path(tokens).parent for tokens in snakemake.input.tokens],
        comparison=Path(snakemake.input.comparison[0]).parent if snakemake.input.comparison else None,
        published=Path(snakemake.input.published[0]).parent,
        definitions=Path(snakemake.input.definitions),
        costs=read_costs(Path(snakemake.params.benchmarks), snakemake.params.outputs),
        galleries=[Path(manifest) for manifest in snakemake.input.galleries],
        report=Path(snakemake.output.report),
    )
