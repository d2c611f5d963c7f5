from pathlib import Path

from outlier_features.dims.compare_runs import compare_runs
from outlier_features.errors import stage

with stage(snakemake.log[0]):
    compare_runs(
        runs=[*dict.fromkeys(Path(table).parent for table in snakemake.input.tables)],
        comparison=Path(snakemake.output.comparison),
        compared_dims=Path(snakemake.output.compared_dims),
    )
