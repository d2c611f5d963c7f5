"""A model with sublayers, heads, massive tokens or super weights off, and what its residual stream then holds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import polars as pl
import torch

from outlier_features.ablate.ablation_targets import MEAN
from outlier_features.ablate.knock_out_effects import SUBLAYERS
from outlier_features.ablate.knock_out_schema import KNOCK_OUT_DIMS, KNOCK_OUTS
from outlier_features.ablate.knock_out_targets import (
    MASSIVE,
    MASSIVE_FIRST,
    MASSIVE_LATER,
    RESTORED,
    KnockOut,
    MassiveDim,
    massive_targets,
    sublayer_targets,
    weight_targets,
)
from outlier_features.ablate.super_weights import down_projection
from outlier_features.ablate.variant_passes import VariantPasses, joined, mean_scores
from outlier_features.model.bases import NO_OTHER_MIXER, RESID_POST
from outlier_features.model.heads import SITE as HEADS
from outlier_features.model.heads import find_heads
from outlier_features.model.interventions import Edit, edited, scaling
from outlier_features.model.models import LoadedModel
from outlier_features.model.placement import beside
from outlier_features.model.sites import Block, hooked
from outlier_features.model.verify_sites import keep_proven, prove_sites
from outlier_features.populations import EXCLUDED, REST
from outlier_features.tokens.tokens import Array, Tokens

_PARTS = {MASSIVE: (EXCLUDED, REST), MASSIVE_FIRST: (EXCLUDED,), MASSIVE_LATER: (REST,)}


class KnockOutRun(VariantPasses[KnockOut]):
    """A model with parts of it off, and what then stands in its residual stream.

    heads       by layer the number of its heads
    not_tried   by target and reason, the blocks that lack it
    """

    def __init__(self, loaded: LoadedModel, sample: Tokens, batch_size: int):
        super().__init__(loaded, sample, batch_size)
        keep_proven(self._blocks, prove_sites(loaded, self._blocks))
        self.heads, unknown = find_heads(loaded, self._blocks)
        self.not_tried = {"head": _by_reason(unknown)}
        for target, site in SUBLAYERS.items():
            lacking = {n: block.absent[site] for n, block in enumerate(self._blocks) if site not in block.sites}
            self.not_tried[target] = _by_reason({n: why for n, why in lacking.items() if why != NO_OTHER_MIXER})

    @property
    def blocks(self) -> list[Block]:
        return self._blocks

    @property
    def followed(self) -> list[int]:
        """The dims whose values are looked at."""
        return [one.dim for one in self._massive]

    def take(self, sample: Tokens, massive: Sequence[MassiveDim] = ()) -> None:
        """Measure on this sample from now on, and look at these dims; their places are of the sample's shape."""
        super().take(sample)
        self._massive = list(massive)
        self._places = {one.dim: torch.from_numpy(one.places) for one in massive}
        self._there = {name: np.isin(sample.parts, parts) for name, parts in _PARTS.items()}

    def targets(self, super_weights: pl.DataFrame) -> list[KnockOut]:
        """All but heads."""
        having = {
            target: [n for n, block in enumerate(self._blocks) if site in block.sites]
            for target, site in SUBLAYERS.items()
        }
        massive = massive_targets(self._massive, self._there)
        return sublayer_targets(having) + massive + weight_targets(super_weights)

    def measured(self, variants: Sequence[KnockOut], first: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows of `KNOCK_OUTS` and `KNOCK_OUT_DIMS`; the variants are numbered from `first` on.

        variants   the unchanged model first
        """
        self._means = self.means_at(
            {
                (layer, dim, variant.positions): (layer, self._at(dim, variant.positions))
                for variant in variants
                if variant.value == MEAN
                for layer, dim in zip(variant.layers, variant.dims, strict=True)
            }
        )
        restored = [variant for variant in variants if variant.value == RESTORED]
        self._restored = {place for variant in restored for place in zip(variant.layers, variant.dims, strict=True)}
        shape = len(variants), len(self._blocks), len(self._massive)
        self._sums, self._tops = np.zeros(shape), np.zeros((*shape[:2], shape[2] + 1))
        scores = mean_scores(self.scores(variants)).sort("variant")
        return self._knock_outs(variants, scores, first), self._knock_out_dims(first)

    def scores(self, variants: Sequence[KnockOut]) -> pl.DataFrame:
        self._variants, self._spiking = variants, dict[tuple[int, int], torch.Tensor]()
        return super().scores(variants)

    def first_changed(self, variant: KnockOut) -> int:
        if variant.target == "weight":
            return self._first_with_weights(variant.layers)
        # What is set in a block's output, is set in that which is kept.
        return min(variant.layers) + (variant.target == "massive_tokens")

    def is_alone(self, variant: KnockOut) -> bool:
        return variant.target == "weight"

    @contextmanager
    def changed(self, variant: KnockOut, rows: slice, times: int, number: int, start: int) -> Iterator[None]:
        past = self._prefixes.past(start)
        with ExitStack() as changes:
            for edit, where in self._edits(variant, rows):
                changes.enter_context(edited([edit], self._only(where, times, number), past))
            if variant.target == "weight":
                scale = changes.enter_context(scaling())
                for layer, row, col in zip(variant.layers, variant.dims, variant.cols, strict=True):
                    scale(down_projection(self._blocks, layer), row, col, variant.scale or 0.0)
            yield

    def _edits(self, variant: KnockOut, rows: slice) -> Iterator[tuple[Edit, torch.Tensor]]:
        """What is set in some sequences of the sample, and where, bool (B, T)."""
        if variant.target in SUBLAYERS:
            for layer in variant.layers:
                site = self._blocks[layer].sites[SUBLAYERS[variant.target]]
                yield Edit(site, tuple(range(site.width)), (0.0,) * site.width), self._mask[rows]
        elif variant.target == "head":
            (layer,) = variant.layers
            assert variant.head is not None
            site, width = self._blocks[layer].sites[HEADS], self._blocks[layer].sites[HEADS].width // self.heads[layer]
            dims = tuple(range(variant.head * width, (variant.head + 1) * width))
            yield Edit(site, dims, (0.0,) * width), self._mask[rows]
        elif variant.target == "massive_tokens":
            for layer, dim in zip(variant.layers, variant.dims, strict=True):
                mean = self._means[layer, dim, variant.positions] if variant.value == MEAN else None
                value = 0.0 if mean is None else float(mean[dim])
                yield (
                    Edit(self._blocks[layer].sites[RESID_POST], (dim,), (value,)),
                    self._at(dim, variant.positions)[rows],
                )
        elif variant.value == RESTORED:
            for layer, row in zip(variant.layers, variant.dims, strict=True):
                values = self._spiking[layer, row]
                mask = beside(self._mask[rows], values)
                largest = values.abs().masked_fill(~mask, -1).argmax(1, keepdim=True)
                where = torch.zeros_like(mask).scatter(1, largest, True)
                yield Edit(self._blocks[layer].sites["mlp_down"], (row,), values[..., None]), where

    def _at(self, dim: int, positions: str) -> torch.Tensor:
        """A dim's massive tokens among these positions, bool (N, T)."""
        return self._places[dim] & torch.from_numpy(self._there[positions])

    @contextmanager
    def watching(self, indices: Sequence[int], rows: slice, times: int, start: int) -> Iterator[None]:
        mask, found = self._mask[rows], dict[int, tuple[Array, Array]]()
        at = [torch.where(self._places[one.dim][rows]) for one in self._massive]

        def look(layer: int, x: torch.Tensor) -> None:
            if layer < start - 1:
                return  # it returned at once, what the last of those that do returned
            x = x.reshape(times, *mask.shape, -1)
            every = x.abs().masked_fill(~beside(mask, x)[..., None], 0).flatten(1).amax(1).cpu().double()
            sums, tops = np.zeros((times, len(at))), np.zeros((times, len(at) + 1))
            tops[:, -1] = every
            for n, ((sequences, positions), one) in enumerate(zip(at, self._massive, strict=True)):
                values = x[:, sequences, positions, one.dim].cpu().double().numpy()
                sums[:, n], tops[:, n] = values.sum(1), np.abs(values).max(axis=1, initial=0)
            found[layer] = sums, tops

        def spike(place: tuple[int, int], x: torch.Tensor) -> None:
            self._spiking[place] = x.reshape(*mask.shape, -1)[..., place[1]].clone()

        unchanged = not indices or self._variants[indices[0]].unchanged
        posts = [(n, block.sites[RESID_POST]) for n, block in enumerate(self._blocks) if RESID_POST in block.sites]
        downs = [(place, self._blocks[place[0]].sites["mlp_down"]) for place in self._restored if unchanged]
        with hooked(posts, look, self._prefixes.past(start)), hooked(downs, spike):
            yield
        if unchanged:
            self._before = found
        for number, index in enumerate(indices):
            for layer, _ in posts:
                sums, tops = found.get(layer, self._before[layer])
                row = number if layer in found and not unchanged else 0
                self._sums[index, layer] += sums[row]
                self._tops[index, layer] = np.maximum(self._tops[index, layer], tops[row])

    def _knock_outs(self, variants: Sequence[KnockOut], scores: pl.DataFrame, first: int) -> pl.DataFrame:
        rows = [
            {
                "variant": index,
                "target": one.target,
                "layers": joined(one.layers),
                "head": one.head,
                "dims": joined(one.dims),
                "cols": joined(one.cols),
                "positions": None if one.unchanged else one.positions,
                "value": one.value,
                "scale": one.scale,
            }
            for index, one in enumerate(variants)
        ]
        described = pl.DataFrame(rows, schema={key: KNOCK_OUTS.schema[key] for key in rows[0]})
        base = pl.col("nll").first()
        return (
            described.join(scores.cast({"variant": pl.UInt32}), on="variant", how="left")
            .sort("variant")
            .with_columns(nll_change=pl.col("nll") - base, variant=pl.col("variant") + first)
            .pipe(KNOCK_OUTS.cast)
        )

    def _knock_out_dims(self, first: int) -> pl.DataFrame:
        places = [int(one.places.sum()) for one in self._massive]
        rows = []
        for index, (sums, tops) in enumerate(zip(self._sums, self._tops, strict=True)):
            for layer in (n for n, block in enumerate(self._blocks) if RESID_POST in block.sites):
                for n, (dim, number) in enumerate(zip([*self.followed, None], [*places, None], strict=True)):
                    row: dict[str, Any] = {"variant": first + index, "layer": layer, "dim": dim, "places": number}
                    if number != 0:
                        row |= {"max_abs": tops[layer, n], "unchanged_max_abs": self._tops[0, layer, n]}
                    if number:
                        row |= {"mean": sums[layer, n] / number, "unchanged_mean": self._sums[0, layer, n] / number}
                    rows.append(row)
        numbers = pl.col(pl.Float64)
        frame = pl.DataFrame(rows, schema=KNOCK_OUT_DIMS.schema)
        return frame.with_columns(pl.when(numbers.is_finite()).then(numbers))


def _by_reason(reasons: Mapping[int, str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for layer, reason in reasons.items():
        found.setdefault(reason, []).append(layer)
    return found
