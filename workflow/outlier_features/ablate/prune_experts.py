"""Rule prune_experts: how well the model predicts without its super experts, and without as many random ones."""

from pathlib import Path
from typing import Any, Unpack

import polars as pl

from outlier_features.ablate.expert_ablation_schema import EXPERT_ABLATION, EXPERT_ABLATION_SEQUENCES
from outlier_features.ablate.pruned_experts import PrunedExperts, random_experts, super_experts
from outlier_features.errors import InputError
from outlier_features.experts.experts_schema import EXPERTS, Ranking
from outlier_features.files.missing import require_had
from outlier_features.files.tables import write_table
from outlier_features.model.loading import Loading
from outlier_features.populations import EXCLUDED
from outlier_features.tokens.tokens import Tokens


def prune_experts(
    source: Path,
    tokens: Path,
    experts: Path,
    expert_ablation: Path,
    expert_ablation_sequences: Path,
    *,
    rule: str,
    sequences: int,
    length: int,
    seeds: int,
    batch_size: int,
    cost: float,
    **loading: Unpack[Loading],
) -> None:
    """Write `expert_ablation`, a row for each variant of the model, and `expert_ablation_sequences`, the same for each
    sequence. Both are empty where no expert is a super expert; the model is not loaded then.

    experts   the run's table `experts`, whose super experts are those of `rule`

    The sample is that of `ablate_dims`, cut by the cost of these variants alone. The provenance has `pruning`: the
    sample, the seeds, whether the model has experts (`has_experts`), and how many super experts (`super_experts`).

    Raises `InputError` where the files are of another run, the model does not predict the next token, or what its
    experts write cannot be set, and `MissingInput` where the experts were not ranked.
    """
    run = Tokens.read(tokens)
    ranks, provenance = run.files.table(experts, EXPERTS)
    require_had(provenance)
    found = super_experts(ranks, rule)
    facts: dict[str, Any] = {
        "has_experts": Ranking.of(provenance).has_experts,
        "super_experts": int(ranks["super_expert"].sum()),
    }
    rows, by_sequence = (pl.DataFrame(schema=table.schema) for table in (EXPERT_ABLATION, EXPERT_ABLATION_SEQUENCES))
    if found:
        if provenance["no_loss"]:
            raise InputError(provenance["no_loss"])
        # Not at the top: a model without super experts is done before torch would be imported.
        from outlier_features.ablate.pruning_passes import PruningPasses, expert_ablation_rows
        from outlier_features.model.models import load_model

        loaded = load_model(Path(run.files.model(source)["location"]), **loading)
        variants = [PrunedExperts(), *found, *random_experts(found, ranks, seeds)]
        passes = PruningPasses(loaded, run.head(sequences, length), batch_size)
        sample = run.head(sequences, passes.affordable(variants, run.tokens.size, cost))
        passes.take(sample)
        by_sequence = passes.scores(variants)
        rows = expert_ablation_rows(variants, by_sequence)
        facts |= {
            "sequences": len(sample.tokens),
            "tokens": sample.tokens.shape[1],
            "seeds": seeds,
            "only_first_excluded": bool((sample.parts[:, 1:] != EXCLUDED).all()),
        }
    provenance |= {"pruning": facts}
    write_table(expert_ablation, rows, EXPERT_ABLATION, provenance)
    write_table(expert_ablation_sequences, by_sequence, EXPERT_ABLATION_SEQUENCES, provenance)
