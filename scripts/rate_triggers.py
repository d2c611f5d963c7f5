from pathlib import Path

from outlier_features.errors import stage
from outlier_features.origin.rate_triggers import rate_triggers

with stage(snakemake.log[0]):
    rate_triggers(
        **{name: Path(path) for name, path in snakemake.input.items()}, triggers=Path(snakemake.output.triggers)
    )
