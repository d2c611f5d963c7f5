"""Rule prune_experts: how well the model predicts without its super experts, and without as many random ones."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import polars as pl
import torch

from outlier_features.ablate.ablate_dims import AblationRun, Means, Variant, ablation_rows
from outlier_features.ablate.expert_ablation_schema import EXPERT_ABLATION, EXPERT_ABLATION_SEQUENCES
from outlier_features.ablate.expert_pruning import SHARED, expert_targets, pruned, random_experts
from outlier_features.errors import InputError
from outlier_features.experts.experts_schema import EXPERTS, Ranking
from outlier_features.experts.moe_layers import MoeLayer, find_moe_layers
from outlier_features.files.missing import require_had
from outlier_features.files.tables import write_table
from outlier_features.model.interventions import Edit
from outlier_features.model.loading import Loading
from outlier_features.model.models import LoadedModel, load_model
from outlier_features.model.prefixes import Prefix
from outlier_features.model.sites import find_sites
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
    targets = expert_targets(ranks, rule)
    facts: dict[str, Any] = {
        "has_experts": Ranking.of(provenance).has_experts,
        "super_experts": int(ranks["super_expert"].sum()),
    }
    if not targets:
        for path, table in ((expert_ablation, EXPERT_ABLATION), (expert_ablation_sequences, EXPERT_ABLATION_SEQUENCES)):
            write_table(path, pl.DataFrame(schema=table.schema), table, provenance | {"pruning": facts})
        return
    if provenance["no_loss"]:
        raise InputError(provenance["no_loss"])
    loaded = load_model(Path(run.files.model(source)["location"]), **loading)
    passes = PruningRun(loaded, run.head(sequences, length), batch_size)
    targets += random_experts(targets, ranks, seeds)
    sample = run.head(sequences, passes.length_within(targets, run.tokens.size, cost))
    passes.take(sample)
    variants = passes.variants(targets)
    by_sequence = passes.scores(variants)
    facts |= {
        "sequences": len(sample.tokens),
        "tokens": sample.tokens.shape[1],
        "seeds": seeds,
        "only_first_excluded": bool((sample.parts[:, 1:] != EXCLUDED).all()),
    }
    provenance |= {"pruning": facts}
    rows = ablation_rows(variants, by_sequence).rename({"dims": "experts"})
    rows = rows.with_columns(pl.col("experts").str.replace_all(str(SHARED), "shared", literal=True))
    write_table(expert_ablation, rows, EXPERT_ABLATION, provenance)
    write_table(expert_ablation_sequences, by_sequence, EXPERT_ABLATION_SEQUENCES, provenance)


class PruningRun(AblationRun):
    """A model, of which variants lack experts, and the sample that they are measured on."""

    def __init__(self, loaded: LoadedModel, sample: Tokens, batch_size: int):
        super().__init__(loaded, sample, batch_size)
        self._moe = moe_layers(loaded)

    def _groups(self, variants: Sequence[Variant], starts: Sequence[int], most: int) -> Iterator[tuple[int, list[int]]]:
        """Each by itself: experts are those of all rows of a batch."""
        for index, (variant, start) in enumerate(zip(variants, starts, strict=True)):
            if variant.target:
                yield start, [index]

    def _run(
        self, variants: Sequence[Variant], means: Means, rows: slice, prefix: Prefix
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (variant,) = variants
        assert variant.target is not None
        with pruned(self._moe, variant.target):
            return super()._run(variants, means, rows, prefix)

    def _edits(self, variant: Variant, means: Means) -> Iterator[Edit]:
        yield from ()


def moe_layers(loaded: LoadedModel) -> Mapping[int, MoeLayer]:
    """The blocks with experts, by number. Raises `InputError` where their parts are not proven."""
    found = find_moe_layers(loaded, find_sites(loaded))
    if found.absent:
        raise InputError(found.absent)
    return {layer.layer: layer for layer in found.layers}
