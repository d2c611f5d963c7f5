from pathlib import Path

from outlier_features.errors import stage
from outlier_features.fetch.fetch_model import fetch_model

with stage(snakemake.log[0]):
    fetch_model(
        source=dict(snakemake.params.source),
        directory=Path(snakemake.output.source).parent,
        # No parameter of the rule, since it is no reason to fetch again.
        evict=snakemake.config.get("fetch", {}).get("evict", False),
    )
