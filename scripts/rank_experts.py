from pathlib import Path

from outlier_features.files.missing import optional_stage
from outlier_features.model.loading import loading_of

params = snakemake.params
with optional_stage("experts", snakemake, of=snakemake.input.dims) as wanted:
    if wanted:
        from outlier_features.experts.rank_experts import rank_experts

        rank_experts(
            **{name: Path(snakemake.input[name]) for name in ("source", "tokens", "massive", "dims", "published")},
            **{name: Path(path) for name, path in snakemake.output.items()},
            sequences=params.sequences,
            percentile=params.rule and params.rule["percentile"],
            share=params.rule and params.rule["share"],
            **loading_of(snakemake),
        )
