"""Rule ablate_dims: how well the model predicts once outlier dims or super weights are set to zero or to their mean."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from outlier_features.ablate.ablation_effects import MOST_NATS
from outlier_features.ablate.ablation_sample import PassCost, affordable_length
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
from outlier_features.dims.dims_schema import DIMS
from outlier_features.errors import InputError
from outlier_features.extract.losses import LossRecorder
from outlier_features.extract.measure_loss import loss_rows
from outlier_features.files.missing import MISSING
from outlier_features.files.tables import write_table
from outlier_features.model.bases import RESID_POST
from outlier_features.model.interventions import Edit, edited, weight_of, zeroing
from outlier_features.model.loading import Loading
from outlier_features.model.models import LoadedModel, load_model
from outlier_features.model.placement import beside
from outlier_features.model.prefixes import PassEnded, Prefix, Prefixes, after_blocks
from outlier_features.model.sites import find_sites, hooked
from outlier_features.populations import EXCLUDED as EXCLUDED_PART
from outlier_features.populations import REST as REST_PART
from outlier_features.rules.kinds import followed
from outlier_features.tokens.tokens import Tokens

_PARTS = {EXCLUDED: (EXCLUDED_PART,), REST: (REST_PART,), ALL: (EXCLUDED_PART, REST_PART)}
KEPT_BYTES = 2**30  # of what passes begin with; of one sequence, whatever it takes
Means = Mapping[tuple[int, str], torch.Tensor]


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


class AblationRun:
    """A model and the sample that its variants are measured on."""

    def __init__(self, loaded: LoadedModel, sample: Tokens, batch_size: int):
        self._loaded = loaded
        self._blocks = find_sites(loaded)
        self._recorder = LossRecorder(loaded)
        self._prefixes = Prefixes(loaded)
        # One at a time on a CPU, as in the extraction: the baseline is then the run's own loss, bit by bit.
        self._batch_size = 1 if loaded.device.type == "cpu" else batch_size
        self.take(sample)

    def take(self, sample: Tokens) -> None:
        """Measure on this sample from now on."""
        device = self._loaded.device
        self._sample = sample
        self._ids = torch.from_numpy(sample.tokens.astype(np.int64)).to(device)
        self._mask = torch.from_numpy(sample.mask.copy()).to(device)
        self._where = {
            positions: torch.from_numpy(np.isin(sample.parts, parts)).to(device) for positions, parts in _PARTS.items()
        }

    def length_within(self, targets: Sequence[AblationTarget], run_tokens: int, cost: float) -> int:
        """Tokens of each sequence of the sample that all variants can be run on at `cost` times the run's passes."""
        price = PassCost(self._loaded)
        variants = self.variants(targets)
        tokens = [price.token(self._start(variant)) for variant in variants]
        if averaged := self._averaged(variants):
            tokens.append(price.token(0, max(averaged) + 1))
        sequences, length = self._ids.shape
        found = affordable_length(length, sequences, tokens, run_tokens * price.token(), cost)
        if found < length:
            print(f"sample: {found} of {length} tokens of each sequence, by `ablate.cost`", file=sys.stderr)
        return found

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
        """The rows of `ABLATION_SEQUENCES`.

        For each batch of sequences one whole pass, which is the unchanged model's; the others begin where they differ
        from it. Variants that begin at one block are run together, where more sequences than the sample's fit a batch.
        """
        starts = [self._start(variant) for variant in variants]
        means = self._means(self._averaged(variants))
        frames: list[pl.DataFrame] = []
        token = self._loaded.d_model * self._loaded.dtype.itemsize * len(set(starts))
        batches = self._batches(KEPT_BYTES // (token * self._ids.shape[1]))
        with tqdm(total=len(variants) * len(batches), desc="ablations", unit="variant", file=sys.stderr) as progress:
            for rows in batches:
                ids = self._ids[rows]
                with torch.inference_mode(), self._prefixes.keeping(starts, ids) as kept, self._recorder.states():
                    self._loaded.base(ids)
                for index, variant in enumerate(variants):
                    if variant.target is None:
                        frames.append(self._rows(index, rows, *self._recorder.token_scores(ids, self._mask[rows])))
                        progress.update()
                for start, group in self._groups(variants, starts, max(1, self._batch_size // len(ids))):
                    scores = self._run([variants[index] for index in group], means, rows, kept[start])
                    each = zip(*(score.chunk(len(group)) for score in scores), strict=True)
                    frames += [self._rows(index, rows, *one) for index, one in zip(group, each, strict=True)]
                    progress.update(len(group))
        table = pl.concat(frames).fill_nan(None)  # a 16-bit model may overflow once it is changed
        return table.pipe(ABLATION_SEQUENCES.cast).sort("variant", "sequence")

    def _rows(self, index: int, rows: slice, nll: torch.Tensor, top1: torch.Tensor) -> pl.DataFrame:
        """The rows of one variant, from losses and largest probabilities float32 (B, T)."""
        found = loss_rows(self._sample, rows.start, rows.start + len(nll), nll.cpu().numpy())
        mean = pl.Series(top1.cpu().numpy().sum(axis=1, dtype=np.float64)) / found["tokens"]
        return found.with_columns(variant=pl.lit(index), top1_probability=mean)

    @staticmethod
    def _averaged(variants: Sequence[Variant]) -> set[int]:
        """Blocks whose mean outputs are needed."""
        return {layer for v in variants if v.target and v.value == MEAN for layer in v.target.layers}

    def _start(self, variant: Variant) -> int:
        """The first block that does anything else than in the unchanged model, as far as passes can begin there."""
        target = variant.target
        if target is None or not target.layers:
            return 0
        first = min(target.layers)
        if target.site == WEIGHT_SITE:
            modules = [down_projection(self._blocks, layer) for layer in target.layers]
            return self._prefixes.start(min(first, *(self._prefixes.first_with(weight_of(m)) for m in modules)))
        # What is set in a block's output, is set in that which is kept.
        return self._prefixes.start(first + (target.site == RESID_POST))

    def _groups(self, variants: Sequence[Variant], starts: Sequence[int], most: int) -> Iterator[tuple[int, list[int]]]:
        """Indices of variants that can be rows of one batch, at most so many; weights are those of all rows."""
        together: dict[int, list[int]] = {}
        for index, (variant, start) in enumerate(zip(variants, starts, strict=True)):
            if variant.target and variant.target.site == WEIGHT_SITE:
                yield start, [index]
            elif variant.target:
                together.setdefault(start, []).append(index)
        for start, indices in together.items():
            size = most if most > 1 and self._prefixes.can_repeat(start) else 1
            for at in range(0, len(indices), size):
                yield start, indices[at : at + size]

    def _run(
        self, variants: Sequence[Variant], means: Means, rows: slice, prefix: Prefix
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses and largest probabilities, float32 (len(variants) * B, T), of each variant's sequences in turn."""
        times, past = len(variants), self._prefixes.past(prefix.start)
        ids, mask = self._ids[rows].repeat(times, 1), self._mask[rows].repeat(times, 1)
        with ExitStack() as changes:
            zero = changes.enter_context(zeroing())
            for number, variant in enumerate(variants):
                target = variant.target
                if target and target.site == WEIGHT_SITE:
                    for layer, row, col in zip(target.layers, target.dims, target.cols, strict=True):
                        zero(down_projection(self._blocks, layer), row, col)
                where = torch.zeros_like(mask)
                where.view(times, *self._ids[rows].shape)[number] = self._where[variant.positions][rows]
                changes.enter_context(edited(self._edits(variant, means), where, past))
            with torch.inference_mode(), self._prefixes.begun(prefix, times), self._recorder.states():
                self._loaded.base(ids)
            return self._recorder.token_scores(ids, mask)

    def _edits(self, variant: Variant, means: Means) -> Iterator[Edit]:
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
            mean = means[layer, variant.positions] if variant.value == MEAN else None
            values = tuple(0.0 if mean is None else float(mean[dim]) for dim in dims)
            yield Edit(self._blocks[layer].sites[target.site], dims, values)

    @torch.inference_mode()
    def _means(self, layers: set[int]) -> Means:
        """Mean `resid_post` (d_model,) of the unchanged model, by block and positions, added up in float64."""
        sums: dict[tuple[int, str], torch.Tensor] = {}
        sites = [(layer, self._blocks[layer].sites[RESID_POST]) for layer in sorted(layers)]
        for rows in self._batches(self._batch_size) if sites else []:

            def add(layer: int, x: torch.Tensor, rows: slice = rows) -> None:
                for positions, where in self._where.items():
                    here = x[beside(where[rows], x).reshape(x.shape[:-1])].cpu().double().sum(0)
                    sums[layer, positions] = sums.get((layer, positions), 0) + here

            def look(block: int, _: Any) -> None:
                if block == sites[-1][0]:
                    raise PassEnded

            with suppress(PassEnded), hooked(sites, add), after_blocks(self._loaded.stack, look):
                self._loaded.base(self._ids[rows])
        return {(layer, name): total / int(self._where[name].sum()) for (layer, name), total in sums.items()}

    def _batches(self, most: int) -> list[slice]:
        size = max(1, min(self._batch_size, most))
        return [slice(n, n + size) for n in range(0, len(self._ids), size)]


def ablation_rows(variants: Sequence[Variant], by_sequence: pl.DataFrame) -> pl.DataFrame:
    """The rows of `ABLATION` from those of `ABLATION_SEQUENCES`, each token counted alike; null where one is null."""
    size = pl.col("bytes").sum()
    finite = pl.col("nll").is_not_null().all()
    mean = pl.when(finite).then(pl.col("nll").sum() / pl.col("tokens").sum()).fill_nan(None)
    top1 = (pl.col("top1_probability").fill_null(0) * pl.col("tokens")).sum() / pl.col("tokens").sum()
    scores = by_sequence.group_by("variant").agg(
        pl.col("tokens").sum(),
        nll=mean,
        perplexity=pl.when(mean < MOST_NATS).then(mean.exp()),
        bits_per_byte=pl.when(size > 0).then(mean * pl.col("tokens").sum() / math.log(2) / size),
        top1_probability=pl.when(finite).then(top1),
    )
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
        "layers": _joined(target.layers),
        "dims": _joined(target.dims),
        "cols": _joined(target.cols),
        "number": len(target.dims),
        "seed": target.seed,
        "positions": variant.positions,
        "value": variant.value,
    }


def _joined(indices: Sequence[int]) -> str | None:
    return "+".join(map(str, indices)) or None
