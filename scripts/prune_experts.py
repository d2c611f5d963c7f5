from pathlib import Path

from outlier_features.files.missing import optional_stage
from outlier_features.model.loading import loading_of

params = snakemake.params
with optional_stage("expert_ablation", snakemake, of=snakemake.input.experts) as wanted:
    if wanted:
        from outlier_features.ablate.prune_experts import prune_experts

        prune_experts(
            **{name: Path(snakemake.input[name]) for name in ("source", "tokens", "experts")},
            **{name: Path(path) for name, path in snakemake.output.items()},
            rule=params.rule,
            sequences=params.sequences,
            length=params.length,
            seeds=params.seeds,
            cost=params.cost,
            batch_size=params.batch_size,
            **loading_of(snakemake),
        )
