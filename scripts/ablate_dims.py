from functools import cache
from pathlib import Path
from typing import Any

from outlier_features.errors import stage
from outlier_features.files.missing import optional
from outlier_features.model.loading import loading_of

params, log, output = snakemake.params, snakemake.log[0], snakemake.output
given = {name: Path(snakemake.input[name]) for name in ("source", "tokens", "dims")}


@cache
def subject() -> Any:
    """The model, once for both analyses."""
    from outlier_features.ablate.subject import Subject

    return Subject.fetched(given["source"], **loading_of(snakemake))


with stage(log):
    of, off = snakemake.input.dims, params.off
    with optional("super_weights", [output.super_weights], log, of=of, off=off["super_weights"]) as wanted:
        if wanted:
            from outlier_features.ablate.find_super_weights import find_super_weights

            find_super_weights(
                subject(),
                **given,
                published=Path(snakemake.input.published),
                super_weights=Path(output.super_weights),
                length=params.length,
                threshold=params.rule["threshold"],
                rounds=params.rule["rounds"],
            )
    tables = [output.ablation, output.ablation_sequences]
    with optional("ablation", tables, log, of=of, off=off["ablation"]) as wanted:
        if wanted:
            from outlier_features.ablate.ablate_dims import ablate_dims

            ablate_dims(
                subject(),
                **given,
                super_weights=Path(output.super_weights),
                ablation=Path(output.ablation),
                ablation_sequences=Path(output.ablation_sequences),
                sequences=params.sequences,
                length=params.length,
                seeds=params.seeds,
                cost=params.cost,
                batch_size=params.batch_size,
            )
