"""Rule ablate_dims: how well the model predicts once outlier dims or super weights are set to zero or to their mean."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import polars as pl
import torch

from outlier_features.ablate.ablation_sample import PassCost
from outlier_features.ablate.ablation_schema import ABLATION, ABLATION_SEQUENCES
from outlier_features.ablate.ablation_targets import (
    ALL,
    EXCLUDED,
    MEAN,
    REST,
    WEIGHT_SITE,
    AblationTarget,
    random_targets,
    selected_targets,
)
from outlier_features.ablate.super_weights import down_projection
from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.ablate.variant_passes import VariantPasses, joined, mean_scores
from outlier_features.dims.dims_schema import DIMS
from outlier_features.errors import InputError
from outlier_features.files.missing import MISSING
from outlier_features.files.tables import write_table
from outlier_features.model.bases import RESID_POST
from outlier_features.model.interventions import Edit, edited, scaling
from outlier_features.model.loading import Loading
from outlier_features.model.models import load_model
from outlier_features.populations import EXCLUDED as EXCLUDED_PART
from outlier_features.populations import REST as REST_PART
from outlier_features.rules.kinds import followed
from outlier_features.tokens.tokens import Tokens

_PARTS = {EXCLUDED: (EXCLUDED_PART,), REST: (REST_PART,), ALL: (EXCLUDED_PART, REST_PART)}


def ablate_dims(
    source: Path,
    tokens: Path,
    dims: Path,
    super_weights: Path,
    ablation: Path,
    ablation_sequences: Path,
    *,
    sequences: int,
    length: int,
    seeds: int,
    batch_size: int,
    cost: float,
    **loading: Unpack[Loading],
) -> None:
    """Write `ablation`, a row for each variant of the model, and `ablation_sequences`, the same for each sequence.

    The sample is the first `length` tokens of the run's first `sequences` sequences, or fewer tokens where the passes
    would be more than `cost` times the run's own, in multiply-adds (see `affordable_length`).

    The provenance has `ablate`: the sample, the seeds, whether each sequence's first position is the only excluded one
    (`only_first_excluded`), and whether super weights were searched (`weights_searched`).

    Raises `InputError` where the files are of another run, or the model does not predict the next token.
    """
    run = Tokens.read(tokens)
    dim_rows, provenance = run.files.table(dims, DIMS)
    weight_rows, found = run.files.table(super_weights, SUPER_WEIGHTS)
    if provenance["no_loss"]:
        raise InputError(provenance["no_loss"])
    loaded = load_model(Path(run.files.model(source)["location"]), **loading)
    passes = AblationRun(loaded, run.head(sequences, length), batch_size)
    targets = selected_targets(dim_rows, followed(provenance["rules"]), weight_rows)
    targets += random_targets(targets, loaded.d_model, passes.neurons, seeds)
    sample = run.head(sequences, passes.length_within(targets, run.tokens.size, cost))
    passes.take(sample)
    variants = passes.variants(targets)
    by_sequence = passes.scores(variants)
    provenance |= {
        "ablate": {
            "sequences": len(sample.tokens),
            "tokens": sample.tokens.shape[1],
            "seeds": seeds,
            "only_first_excluded": bool((sample.parts[:, 1:] != EXCLUDED_PART).all()),
            "weights_searched": MISSING not in found,
        }
    }
    write_table(ablation, ablation_rows(variants, by_sequence), ABLATION, provenance)
    write_table(ablation_sequences, by_sequence, ABLATION_SEQUENCES, provenance)


@dataclass(frozen=True)
class Variant:
    """A target set to zero or to its mean at some positions; without a target, the unchanged model."""

    target: AblationTarget | None
    positions: str = ALL
    value: str | None = None

    @property
    def unchanged(self) -> bool:
        return self.target is None


class AblationRun(VariantPasses[Variant]):
    """A model without dims or weights."""

    def take(self, sample: Tokens) -> None:
        super().take(sample)
        self._where = {
            positions: torch.from_numpy(np.isin(sample.parts, parts)).to(self._loaded.device)
            for positions, parts in _PARTS.items()
        }

    def length_within(self, targets: Sequence[AblationTarget], run_tokens: int, cost: float) -> int:
        """Tokens of each sequence of the sample that all variants can be run on at `cost` times the run's passes."""
        return self.affordable(self.variants(targets), run_tokens, cost)

    @property
    def neurons(self) -> dict[int, int]:
        return {n: block.sites["mlp_act"].width for n, block in enumerate(self._blocks) if "mlp_act" in block.sites}

    def variants(self, targets: Sequence[AblationTarget]) -> list[Variant]:
        """The unchanged model first; nothing is done at positions that the sample has none of."""
        return [
            Variant(None),
            *(
                Variant(target, positions, value)
                for target in targets
                for positions, value in target.treatments
                if self._where[positions].any()
            ),
        ]

    def scores(self, variants: Sequence[Variant]) -> pl.DataFrame:
        self._means = self.means_at(
            {
                (layer, name): (layer, where)
                for layer in sorted(_averaged(variants))
                for name, where in self._where.items()
            }
        )
        return super().scores(variants)

    def costs_before(self, variants: Sequence[Variant], price: PassCost) -> Iterable[float]:
        averaged = _averaged(variants)
        return [price.token(0, max(averaged) + 1)] if averaged else []

    def first_changed(self, variant: Variant) -> int:
        target = variant.target
        if target is None or not target.layers:
            return 0
        if target.site == WEIGHT_SITE:
            return self._first_with_weights(target.layers)
        # What is set in a block's output, is set in that which is kept.
        return min(target.layers) + (target.site == RESID_POST)

    def is_alone(self, variant: Variant) -> bool:
        return variant.target is not None and variant.target.site == WEIGHT_SITE

    @contextmanager
    def changed(self, variant: Variant, rows: slice, times: int, number: int, start: int) -> Iterator[None]:
        target = variant.target
        where = self._only(self._where[variant.positions][rows], times, number)
        with scaling() as scale, edited(self._edits(variant), where, self._prefixes.past(start)):
            if target and target.site == WEIGHT_SITE:
                for layer, row, col in zip(target.layers, target.dims, target.cols, strict=True):
                    scale(down_projection(self._blocks, layer), row, col, 0)
            yield

    def _edits(self, variant: Variant) -> Iterator[Edit]:
        target = variant.target
        if target is None or target.site == WEIGHT_SITE:
            return
        if not target.layers:
            for name in target.site.split("+"):
                for block in self._blocks:
                    if name in block.sites:
                        yield Edit(block.sites[name], target.dims, (0.0,) * len(target.dims))
            return
        for layer in dict.fromkeys(target.layers):
            dims = tuple(dim for dim, its in zip(target.dims, target.layers, strict=True) if its == layer)
            mean = self._means[layer, variant.positions] if variant.value == MEAN else None
            values = tuple(0.0 if mean is None else float(mean[dim]) for dim in dims)
            yield Edit(self._blocks[layer].sites[target.site], dims, values)


def _averaged(variants: Sequence[Variant]) -> set[int]:
    """Blocks whose mean outputs are needed."""
    return {layer for v in variants if v.target and v.value == MEAN for layer in v.target.layers}


def ablation_rows(variants: Sequence[Variant], by_sequence: pl.DataFrame) -> pl.DataFrame:
    """The rows of `ABLATION` from those of `ABLATION_SEQUENCES`."""
    scores = mean_scores(by_sequence)
    described = pl.DataFrame(
        [{"variant": index, **_described(variant)} for index, variant in enumerate(variants)],
        schema={name: dtype for name, dtype in ABLATION.schema.items() if name not in scores.columns[1:]},
    )
    return described.join(scores, on="variant", how="left").sort("variant")


def _described(variant: Variant) -> dict[str, Any]:
    target = variant.target
    if target is None:
        return {"target": "baseline"}
    return {
        "target": target.kind,
        "rule": target.rule,
        "site": target.site,
        "layers": joined(target.layers),
        "dims": joined(target.dims),
        "cols": joined(target.cols),
        "number": len(target.dims),
        "seed": target.seed,
        "positions": variant.positions,
        "value": variant.value,
    }
