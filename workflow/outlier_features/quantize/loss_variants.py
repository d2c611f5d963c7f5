"""Which variants of a model are measured, so that none is run twice, and the rows of `quantization_loss`."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from outlier_features.ablate.variant_passes import mean_scores
from outlier_features.channels.linear_layers import LinearInput
from outlier_features.files.quantization_columns import (
    ALPHAS,
    BOTH,
    EXACT_DIMS,
    EXACT_SUPER_WEIGHT,
    INPUT,
    NONE,
    SMOOTH,
    WEIGHT,
)
from outlier_features.quantize.loss_schema import QUANTIZATION_LOSS
from outlier_features.quantize.quantizing_passes import Quantized, QuantizingPasses, remedy_of_model
from outlier_features.quantize.remedies import RunFindings, Treatment, treatments
from outlier_features.quantize.schemes import SCHEMES
from outlier_features.resampling import Resampling


def whole_variants(
    inputs: Sequence[LinearInput], found: RunFindings, schemes: Sequence[str], remedied: Sequence[str]
) -> Iterator[Quantized]:
    """All inputs: by each scheme what it rounds, then by those of `remedied` each remedy.

    A remedy of the model is that at every input which has it; the others are rounded without.
    """
    every = tuple(range(len(inputs)))
    for scheme in schemes:
        for quantized in (INPUT, WEIGHT, BOTH):
            yield Quantized(every, scheme, quantized, NONE)
    remedies = _remedies(inputs, found)
    for scheme in schemes:
        for (remedy, setting), treatment in remedies.items():
            if scheme in remedied and treatment.suits(SCHEMES[scheme]):
                yield Quantized(every, scheme, BOTH, remedy, setting)


def part_variants(inputs: Sequence[LinearInput], scheme: str) -> Iterator[Quantized]:
    """The layers that read one site, then those that read one input."""
    by_site: dict[str, list[int]] = {}
    for number, one in enumerate(inputs):
        if one.site:
            by_site.setdefault(one.site, []).append(number)
    for site, numbers in by_site.items():
        yield Quantized(tuple(numbers), scheme, BOTH, NONE, what=f"site:{site}")
    for number, one in enumerate(inputs):
        yield Quantized((number,), scheme, BOTH, NONE, what=f"module:{one.name}")


def kept_variants(orders: dict[str, Sequence[int]], scheme: str) -> Iterator[Quantized]:
    """All but the first k inputs of each order, for k = 1, 2, 4 and so on."""
    for order, numbers in orders.items():
        for kept in kept_numbers(len(numbers)):
            yield Quantized(tuple(sorted(numbers[kept:])), scheme, BOTH, NONE, what=f"kept:{order}:{kept}")


def kept_numbers(inputs: int) -> list[int]:
    """Powers of two below the number of inputs."""
    return [2**n for n in range(inputs.bit_length()) if 2**n < inputs]


def settings_of_remedies(inputs: Sequence[LinearInput], found: RunFindings) -> dict[tuple[str, str | None], str | None]:
    """What is said of a remedy of the model: its setting, or what all inputs that have it say."""
    said: dict[tuple[str, str | None], dict[str, None]] = {}
    for one in inputs:
        for treatment in _tried(one, found):
            texts = said.setdefault(remedy_of_model(treatment), {})
            if treatment.setting:
                of_site = treatment.remedy in (EXACT_DIMS, EXACT_SUPER_WEIGHT)
                texts[f"{one.site}: {treatment.setting}" if of_site else treatment.setting] = None
    return {key: "; ".join(texts) or None for key, texts in said.items()}


def _remedies(inputs: Sequence[LinearInput], found: RunFindings) -> dict[tuple[str, str | None], Treatment]:
    every = {remedy_of_model(treatment): treatment for one in inputs for treatment in _tried(one, found)}
    return {key: one for key, one in every.items() if key[0] != NONE and (key[0] != SMOOTH or key[1] == _ALPHA)}


_ALPHA = f"alpha {ALPHAS[0]}"


def _tried(one: LinearInput, found: RunFindings) -> Iterator[Treatment]:
    """As to their kinds: nothing of the model's weights is read."""
    ones = torch.ones(one.width)
    return treatments(one, ones, lambda: ones, found)


@dataclass(frozen=True)
class Measured:
    """Variants, the unchanged model first, and what was measured of them: rows of `QUANTIZATION_LOSS_SEQUENCES`."""

    variants: Sequence[Quantized]
    by_sequence: pl.DataFrame

    @classmethod
    def by(cls, passes: QuantizingPasses, variants: Sequence[Quantized]) -> "Measured":
        """Those that compute the same are run once."""
        first: dict[Hashable, int] = {}
        run: list[Quantized] = []
        of: list[int] = []
        for variant in variants:
            key = computed(variant)
            if key not in first:
                first[key] = len(run)
                run.append(variant)
            of.append(first[key])
        found = passes.scores(run)
        every = pl.DataFrame({"variant": of, "as": range(len(of))}, schema={"variant": pl.UInt16, "as": pl.UInt16})
        rows = every.join(found, on="variant", how="left").drop("variant").rename({"as": "variant"})
        return cls(variants, passes.table.cast(rows).sort("variant", "sequence"))

    def __add__(self, other: "Measured") -> "Measured":
        """Whose unchanged model is the same."""
        more = other.by_sequence.filter(pl.col("variant") > 0)
        more = more.with_columns(variant=(pl.col("variant") + len(self.variants) - 1).cast(pl.UInt16))
        return Measured([*self.variants, *other.variants[1:]], pl.concat([self.by_sequence, more]))

    def scores(self) -> pl.DataFrame:
        """By variant the columns of `SCORES`, `kl`, `nll_change` and its interval over sequences."""
        kl = (pl.col("kl") * pl.col("tokens")).sum() / pl.col("tokens").sum()
        means = (
            self.by_sequence.filter(pl.col("tokens") > 0)
            .group_by("variant")
            .agg(kl=pl.when(pl.col("kl").is_not_null().all()).then(kl))
        )
        changes = [self._change(variant) for variant in range(len(self.variants))]
        changed = pl.DataFrame(changes, schema={"nll_change": pl.Float64, "low": pl.Float64, "high": pl.Float64},
                               orient="row").with_row_index("variant")  # fmt: skip
        found = mean_scores(self.by_sequence).join(means, on="variant", how="left")
        return found.join(changed.cast({"variant": pl.UInt16}), on="variant").sort("variant")

    def rows(self, inputs: Sequence[LinearInput], found: RunFindings) -> pl.DataFrame:
        """Those of `QUANTIZATION_LOSS`."""
        settings = settings_of_remedies(inputs, found)
        rows: list[dict[str, Any]] = [
            {"variant": number, "modules": 0}
            if one.unchanged
            else {
                "variant": number,
                "scheme": one.scheme,
                "remedy": one.remedy,
                "setting": settings[one.remedy or NONE, one.setting],
                "quantized": one.quantized,
                "what": one.what,
                "modules": sum(len(inputs[n].layers) for n in one.inputs),
            }
            for number, one in enumerate(self.variants)
        ]
        scores = self.scores()
        schema = {name: kind for name, kind in QUANTIZATION_LOSS.schema.items() if name not in scores.columns[1:]}
        return pl.DataFrame(rows, schema=schema).join(scores, on="variant", how="left").sort("variant")

    def _change(self, variant: int) -> tuple[float | None, float | None, float | None]:
        own, base = (self.by_sequence.filter(variant=n).sort("sequence") for n in (variant, 0))
        tokens = base["tokens"].to_numpy()
        if own["nll"].null_count() or not tokens.sum():
            return None, None, None
        change = own["nll"].to_numpy() - base["nll"].to_numpy()
        low, high = _interval(change, tokens)
        return float(change.sum() / tokens.sum()), low, high


def _interval(change: np.ndarray[Any, Any], tokens: np.ndarray[Any, Any]) -> tuple[float | None, float | None]:
    draws = Resampling(len(tokens))
    return draws.interval(draws.ratios(change, tokens))


def computed(variant: Quantized) -> Hashable:
    """Equal of variants that compute the same: schemes differ by their names, or in what is not rounded."""
    if variant.unchanged:
        return None
    scheme = SCHEMES[variant.scheme or ""]
    rounds = (scheme.format, scheme.bits, scheme.shares) if INPUT in (variant.quantized or "") else None
    weight = scheme.weight if WEIGHT in (variant.quantized or "") else None
    return variant.inputs, rounds, weight, scheme.exact, variant.remedy, variant.setting
