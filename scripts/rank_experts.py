from pathlib import Path

from outlier_features.errors import stage
from outlier_features.experts.rank_experts import rank_experts

params = snakemake.params
with stage(snakemake.log[0]):
    rank_experts(
        **{name: Path(snakemake.input[name]) for name in ("source", "tokens", "massive", "dims", "published")},
        experts=Path(snakemake.output.experts),
        routing=Path(snakemake.output.routing),
        sequences=params.sequences,
        **params.loading,
    )
