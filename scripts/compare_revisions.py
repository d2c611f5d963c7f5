from pathlib import Path

from outlier_features.compare.compare_revisions import compare_revisions
from outlier_features.errors import stage

with stage(snakemake.log[0]):
    compare_revisions(
        runs=[*dict.fromkeys(Path(table).parent for table in snakemake.input.tables)],
        models=Path(snakemake.input.models),
        first_steps=Path(snakemake.output.first_steps),
    )
