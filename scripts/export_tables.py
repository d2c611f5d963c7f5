from pathlib import Path

from outlier_features.errors import stage
from outlier_features.files.export_tables import export_tables

with stage(snakemake.log[0]):
    export_tables(
        tables={name: Path(path) for name, path in snakemake.input.items()},
        directory=Path(snakemake.output.directory),
    )
