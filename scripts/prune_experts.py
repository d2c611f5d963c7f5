from pathlib import Path

from outlier_features.ablate.prune_experts import prune_experts
from outlier_features.errors import stage
from outlier_features.files.missing import optional
from outlier_features.model.loading import loading_of

params, inputs, outputs = snakemake.params, snakemake.input, snakemake.output
with stage(snakemake.log[0]):
    run = optional(prune_experts, "expert_ablation", outputs, snakemake.log[0], of=inputs.experts, off=params.off)
    run(
        **{name: Path(inputs[name]) for name in ("source", "tokens", "experts")},
        **{name: Path(path) for name, path in outputs.items()},
        rule=params.rule,
        sequences=params.sequences,
        length=params.length,
        seeds=params.seeds,
        cost=params.cost,
        batch_size=params.batch_size,
        **loading_of(snakemake),
    )
