"""A prefix tried: whether later tokens still have massive activations behind it, and what rounding costs then."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch

from outlier_features.files.quantization_columns import BOTH, EXACT_POSITIONS, NONE
from outlier_features.model.bases import RESID_POST
from outlier_features.model.sites import hooked
from outlier_features.populations import EXCLUDED
from outlier_features.quantize.loss_schema import PREFIX_TRIAL
from outlier_features.quantize.loss_variants import Measured
from outlier_features.quantize.quantizing_passes import Quantized, QuantizingPasses
from outlier_features.quantize.remedies import Treatment
from outlier_features.quantize.schemes import SCHEMES
from outlier_features.tokens.tokens import Tokens

Array = np.ndarray[Any, Any]
RATIO, LEAST = 1000.0, 100.0  # massive: more than both, of the median and by itself


class PrefixPasses(QuantizingPasses):
    """Passes that look at `resid_post` of the sequences' own tokens, those behind the first `prefix`.

    found   by variant and block the largest abs(x), the median that it stands out of most, and massive tokens
    """

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self.prefix, self.found = 0, dict[int, dict[int, tuple[float, float, int]]]()

    @contextmanager
    def watching(self, indices: Sequence[int], rows: slice, times: int, start: int) -> Iterator[None]:
        own = self._there[rows].clone()
        own[:, : self.prefix] = False
        (index,) = indices  # variants are alone

        def look(layer: int, x: torch.Tensor) -> None:
            values = x.abs().reshape(*own.shape, -1).float()
            for value, there in zip(values, own.to(x.device), strict=True):
                largest, median = value[there].amax(1), value[there].median()
                one = float(largest.max()), float(median)
                before = self.found.setdefault(index, {}).get(layer, (0.0, 1.0, 0))
                massive = int(((largest > LEAST) & (largest > RATIO * median)).sum())
                top = one if one[0] * before[1] > before[0] * one[1] else before[:2]
                self.found[index][layer] = (*top, before[2] + massive)

        sites = [(n, block.sites[RESID_POST]) for n, block in enumerate(self._blocks) if RESID_POST in block.sites]
        with hooked(sites, look):
            yield


def try_prefix(
    passes: PrefixPasses, sample: Tokens, prefix: Sequence[int], scheme: str, most: int | None
) -> pl.DataFrame:
    """The rows of `PREFIX_TRIAL`.

    prefix   token ids
    most     positions that the model has; None: any number
    """
    length = sample.tokens.shape[1] if most is None else min(sample.tokens.shape[1], most - len(prefix))
    sample = sample.head(len(sample.tokens), length)
    remedies = [NONE]
    if Treatment(EXACT_POSITIONS, positions=True).suits(SCHEMES[scheme]):
        remedies.append(EXACT_POSITIONS)
    every = tuple(range(len(passes.inputs)))
    variants = [Quantized(), *(Quantized(every, scheme, BOTH, remedy) for remedy in remedies)]
    frames = []
    for ids in ((), prefix):
        passes.take(behind(ids, sample))
        exact = sample.parts == EXCLUDED
        put = np.ones((len(exact), len(ids)), bool)
        if ids:
            exact = np.zeros_like(exact)
        passes.set_exact(np.concatenate([put, exact], 1), np.concatenate([put, sample.mask], 1))
        passes.prefix, passes.found = len(ids), {}
        scores = Measured.by(passes, variants).scores()
        described = pl.DataFrame(
            [
                {"variant": n, "prefix": len(ids), **_described(variant), **_standing_out(passes.found[n])}
                for n, variant in enumerate(variants)
            ],
            schema={"variant": pl.UInt16}
            | {name: kind for name, kind in PREFIX_TRIAL.schema.items() if name not in scores.columns},
        )
        frames.append(described.join(scores, on="variant").sort("variant"))
    return PREFIX_TRIAL.cast(pl.concat(frames))


def behind(prefix: Sequence[int], sample: Tokens) -> Tokens:
    """The sample's sequences with the prefix before each; predicted are the tokens that are without it."""
    shape = len(sample.tokens), len(prefix)
    mask = sample.mask.copy()
    if prefix:
        mask[:, 0] = False
    before: Mapping[str, Array] = {
        "tokens": np.tile(np.array(prefix, np.int32), (shape[0], 1)),
        "special": np.ones(shape, bool),
        "mask": np.zeros(shape, bool),
        "offsets": np.zeros((*shape, 2), np.int32),
    }
    after: Mapping[str, Array] = {
        "tokens": sample.tokens,
        "special": sample.special,
        "mask": mask,
        "offsets": sample.offsets,
    }
    both: dict[str, Any] = {name: np.concatenate([before[name], after[name]], 1) for name in before}
    return replace(sample, **both)


def _described(variant: Quantized) -> dict[str, Any]:
    exact = None if variant.unchanged else variant.remedy == EXACT_POSITIONS
    return {"scheme": variant.scheme, "quantized": variant.quantized, "exact": exact}


def _standing_out(found: Mapping[int, tuple[float, float, int]]) -> dict[str, Any]:
    """Of the block where most does."""
    layer = max(found, key=lambda n: found[n][0] / found[n][1] if found[n][1] else 0.0, default=None)
    if layer is None:
        return {}
    largest, median, _ = found[layer]
    massive = max(number for *_, number in found.values())
    ratio = largest / median if median else None
    return {"layer": layer, "max_abs": largest, "median": median, "ratio": ratio, "massive": massive}
