"""Passes of variants of a model over a sample: each begins where the variant differs from the unchanged model."""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from outlier_features.ablate.ablation_effects import MOST_NATS
from outlier_features.ablate.ablation_sample import PassCost, affordable_length
from outlier_features.ablate.ablation_schema import ABLATION_SEQUENCES
from outlier_features.ablate.subject import Subject
from outlier_features.ablate.super_weights import down_projection
from outlier_features.extract.losses import LossRecorder
from outlier_features.extract.measure_loss import loss_rows
from outlier_features.files.tables import Table
from outlier_features.model.bases import RESID_POST
from outlier_features.model.interventions import weight_of
from outlier_features.model.placement import beside
from outlier_features.model.prefixes import PassEnded, Prefix, after_blocks
from outlier_features.model.sites import hooked
from outlier_features.tokens.tokens import Tokens

KEPT_BYTES = 2**30  # of what passes begin with; of one sequence, whatever it takes


class Variant(Protocol):
    @property
    def unchanged(self) -> bool:
        """It is the model as it was loaded."""


V = TypeVar("V", bound=Variant)
Key = TypeVar("Key", bound=Hashable)


class VariantPasses(ABC, Generic[V]):
    """A model and the sample that its variants are measured on.

    table    of `scores`, whose means by token are the columns of what `scored` finds
    called   what the passes are of, where their progress is shown
    """

    table: ClassVar[Table] = ABLATION_SEQUENCES
    called: ClassVar[str] = "ablations"

    def __init__(self, subject: Subject, sample: Tokens, batch_size: int):
        self._loaded, self._blocks, self._prefixes = subject.loaded, subject.blocks, subject.prefixes
        self._recorder = LossRecorder(self._loaded)
        # One at a time on a CPU, as in the extraction: the baseline is then the run's own loss, bit by bit.
        self._batch_size = 1 if self._loaded.device.type == "cpu" else batch_size
        self.take(sample)

    @abstractmethod
    def changed(self, variant: V, rows: slice, times: int, number: int, start: int) -> AbstractContextManager[None]:
        """While it is open, the model is the variant in a pass that begins at block `start`.

        rows            the sequences of the sample that run
        times, number   they run so many times in one batch, and the variant is this one of them
        """

    @abstractmethod
    def first_changed(self, variant: V) -> int:
        """The first block that is not what it is in the unchanged model."""

    @abstractmethod
    def is_alone(self, variant: V) -> bool:
        """Whether it can be no row of a batch among others: weights are those of all rows."""

    def watching(self, indices: Sequence[int], rows: slice, times: int, start: int) -> AbstractContextManager[None]:
        """Open during a pass that begins at block `start`: of the unchanged model, or of variants beside each other.

        indices   of the variants, each of which has its own of the `times` that the sequences `rows` run; or of those
                  that are the unchanged model
        """
        return nullcontext()

    def scored(self, ids: torch.Tensor, mask: torch.Tensor, unchanged: bool) -> dict[str, torch.Tensor]:
        """Of the last pass, over `ids` and with their `mask` (B, T), by column a number for each token: (B, T), 0 where
        none is predicted; `nll` among them. The pass of the unchanged model goes before those of its variants."""
        nll, top1 = self._recorder.token_scores(ids, mask)
        return {"nll": nll, "top1_probability": top1}

    def costs_before(self, variants: Sequence[V], price: PassCost) -> Iterable[float]:
        """Costs of a token in passes that `scores` needs besides those of the variants."""
        return ()

    def take(self, sample: Tokens) -> None:
        """Measure on this sample from now on."""
        device = self._loaded.device
        self._sample = sample
        self._ids = torch.from_numpy(sample.tokens.astype(np.int64)).to(device)
        self._mask = torch.from_numpy(sample.mask.copy()).to(device)

    def affordable(self, variants: Sequence[V], run_tokens: int, cost: float, spent: float = 0.0) -> int:
        """Tokens of each sequence of the sample that all variants can be run on at `cost` times the run's passes.

        spent   multiply-adds of that which other passes took
        """
        price = PassCost(self._loaded)
        tokens = [price.token(self._start(variant)) for variant in variants]
        tokens += self.costs_before(variants, price)
        sequences, length = self._ids.shape
        found = affordable_length(length, sequences, tokens, run_tokens * price.token(), cost, spent)
        if found < length:
            print(f"sample: {found} of {length} tokens of each sequence, by `ablate.cost`", file=sys.stderr)
        return found

    def scores(self, variants: Sequence[V]) -> pl.DataFrame:
        """The rows of `table`.

        For each batch of sequences one whole pass, which is the unchanged model's; the others begin where they differ
        from it. Variants that begin at one block are run together, where more sequences than the sample's fit a batch.
        """
        starts = [self._start(variant) for variant in variants]
        unchanged = [index for index, variant in enumerate(variants) if variant.unchanged]
        frames: list[pl.DataFrame] = []
        token = self._loaded.d_model * self._loaded.dtype.itemsize * len(set(starts))
        batches = self._batches(KEPT_BYTES // (token * self._ids.shape[1]))
        with tqdm(total=len(variants) * len(batches), desc=self.called, unit="variant", file=sys.stderr) as progress:
            for rows in batches:
                ids = self._ids[rows]
                with (
                    torch.inference_mode(),
                    self._prefixes.keeping(starts, ids) as kept,
                    self.watching(unchanged, rows, 1, 0),
                    self._recorder.states(),
                ):
                    self._loaded.base(ids)
                for index in unchanged:
                    frames.append(self._rows(index, rows, self.scored(ids, self._mask[rows], unchanged=True)))
                    progress.update()
                for start, group in self._groups(variants, starts, max(1, self._batch_size // len(ids))):
                    found = self._run(variants, group, rows, kept[start])
                    for number, index in enumerate(group):
                        of_one = {name: value.chunk(len(group))[number] for name, value in found.items()}
                        frames.append(self._rows(index, rows, of_one))
                    progress.update(len(group))
        table = pl.concat(frames).fill_nan(None)  # a 16-bit model may overflow once it is changed
        return table.pipe(self.table.cast).sort("variant", "sequence")

    @torch.inference_mode()
    def means_at(self, wanted: Mapping[Key, tuple[int, torch.Tensor]]) -> dict[Key, torch.Tensor]:
        """Mean `resid_post` (d_model,) of the unchanged model, added up in float64.

        wanted   by key the block, and the positions, bool (N, T)
        """
        sums: dict[Key, torch.Tensor] = {}
        layers = sorted({layer for layer, _ in wanted.values()})
        sites = [(layer, self._blocks[layer].sites[RESID_POST]) for layer in layers]
        for rows in self._batches(self._batch_size) if sites else []:

            def add(layer: int, x: torch.Tensor, rows: slice = rows) -> None:
                for key, (its, where) in wanted.items():
                    if its == layer:
                        here = x[beside(where[rows], x).reshape(x.shape[:-1])].cpu().double().sum(0)
                        sums[key] = sums.get(key, 0) + here

            def look(block: int, _: Any) -> None:
                if block == layers[-1]:
                    raise PassEnded

            with suppress(PassEnded), hooked(sites, add), after_blocks(self._loaded.stack, look):
                self._loaded.base(self._ids[rows])
        return {key: total / int(wanted[key][1].sum()) for key, total in sums.items()}

    def _run(self, variants: Sequence[V], group: Sequence[int], rows: slice, prefix: Prefix) -> dict[str, torch.Tensor]:
        """What is measured of each variant's sequences in turn, (len(group) * B, T)."""
        times = len(group)
        ids, mask = self._ids[rows].repeat(times, 1), self._mask[rows].repeat(times, 1)
        with ExitStack() as changes:
            for number, index in enumerate(group):
                changes.enter_context(self.changed(variants[index], rows, times, number, prefix.start))
            changes.enter_context(self.watching(group, rows, times, prefix.start))
            with torch.inference_mode(), self._prefixes.begun(prefix, times), self._recorder.states():
                self._loaded.base(ids)
            return self.scored(ids, mask, unchanged=False)

    def _rows(self, index: int, rows: slice, measured: Mapping[str, torch.Tensor]) -> pl.DataFrame:
        """The rows of one variant, from what is measured of its tokens (B, T)."""
        values = {name: value.cpu().numpy() for name, value in measured.items()}
        nll = values.pop("nll")
        found = loss_rows(self._sample, rows.start, rows.start + len(nll), nll)
        means = {
            name: pl.Series(value.sum(axis=1, dtype=np.float64)) / found["tokens"] for name, value in values.items()
        }
        return found.with_columns(variant=pl.lit(index), **means)

    def _start(self, variant: V) -> int:
        """The first block that does anything else than in the unchanged model, as far as passes can begin there."""
        return 0 if variant.unchanged else self._prefixes.start(self.first_changed(variant))

    def _first_with_weights(self, layers: Iterable[int]) -> int:
        """The first block that has the last matrix of one of these blocks' MLPs."""
        weights = [weight_of(down_projection(self._blocks, layer)) for layer in layers]
        return min(*layers, *map(self._prefixes.first_with, weights))

    def _groups(self, variants: Sequence[V], starts: Sequence[int], most: int) -> Iterator[tuple[int, list[int]]]:
        """Indices of changed variants that can be rows of one batch, at most so many."""
        together: dict[int, list[int]] = {}
        for index, (variant, start) in enumerate(zip(variants, starts, strict=True)):
            if variant.unchanged:
                continue
            if self.is_alone(variant):
                yield start, [index]
            else:
                together.setdefault(start, []).append(index)
        for start, indices in together.items():
            size = most if most > 1 and self._prefixes.can_repeat(start) else 1
            for at in range(0, len(indices), size):
                yield start, indices[at : at + size]

    def _only(self, where: torch.Tensor, times: int, number: int) -> torch.Tensor:
        """`where`, bool (B, T), in one of the `times` that a batch has it, nowhere in the others: (times * B, T)."""
        every = torch.zeros(times, *where.shape, dtype=torch.bool, device=where.device)
        every[number] = where
        return every.view(-1, where.shape[1])

    def _batches(self, most: int) -> list[slice]:
        size = max(1, min(self._batch_size, most))
        return [slice(n, n + size) for n in range(0, len(self._ids), size)]


def mean_scores(by_sequence: pl.DataFrame) -> pl.DataFrame:
    """By variant the means over the rows of `ABLATION_SEQUENCES`, each token counted alike; null where one is null."""
    size = pl.col("bytes").sum()
    finite = pl.col("nll").is_not_null().all()
    mean = pl.when(finite).then(pl.col("nll").sum() / pl.col("tokens").sum()).fill_nan(None)
    top1 = (pl.col("top1_probability").fill_null(0) * pl.col("tokens")).sum() / pl.col("tokens").sum()
    return by_sequence.group_by("variant").agg(
        pl.col("tokens").sum(),
        nll=mean,
        perplexity=pl.when(mean < MOST_NATS).then(mean.exp()),
        bits_per_byte=pl.when(size > 0).then(mean * pl.col("tokens").sum() / math.log(2) / size),
        top1_probability=pl.when(finite).then(top1),
    )


def joined(indices: Sequence[int]) -> str | None:
    """As columns of `ABLATION` have several."""
    return "+".join(map(str, indices)) or None
