"""Of the table `quantization`, what is told of it: errors of layers by scheme, and what each remedy leaves of them."""

import re

import polars as pl

from outlier_features.quantize.remedies import (
    ALPHAS,
    CLIP,
    EXACT_DIMS,
    EXACT_POSITIONS,
    EXACT_RANDOM,
    EXACT_SUPER_WEIGHT,
    HADAMARD,
    NONE,
    SMOOTH,
)

# Two of the settings of `smooth` are told apart: the one that its paper takes, and the best of the layer.
SMOOTH_BEST, CLIP_BEST = f"{SMOOTH}_best", f"{CLIP}_best"
# In the order in which they are shown, and what they are called.
TOLD = {
    NONE: "no remedy",
    EXACT_DIMS: "selected dims exact",
    EXACT_RANDOM: "as many random dims exact",
    EXACT_POSITIONS: "first and massive tokens exact",
    EXACT_SUPER_WEIGHT: "super weights exact",
    SMOOTH: f"smoothing, alpha {ALPHAS[0]}",
    SMOOTH_BEST: "smoothing, best alpha",
    HADAMARD: "Hadamard rotation",
    CLIP_BEST: "clipping, best quantile",
}
_SAME = ("module", "scheme", "quantized", "population")


def kind_of(module: str) -> str:
    """What a linear layer is called in every block: `self_attn.q_proj`; that of each expert alike."""
    return re.sub(r"\bexperts\.\d+\b", "experts.*", re.sub(r"^.*?\.\d+\.", "", module))


def scheme_errors(quantization: pl.DataFrame) -> pl.DataFrame:
    """The rows without a remedy that have an output error, with `kind` (see `kind_of`), in the order of the model."""
    rows = quantization.filter(pl.col("output_error").is_not_null(), remedy=NONE)
    return rows.with_columns(kind=pl.col("module").map_elements(kind_of, return_dtype=pl.String))


def remedy_errors(quantization: pl.DataFrame) -> pl.DataFrame:
    """A row for each layer, scheme, setting of a remedy, what is quantized, and population.

    told            a key of `TOLD`; of `smooth` and `clip` the best setting stands for all, and alpha 0.5 for itself
    without         output_error of the same layer without a remedy
    left            output_error over that: below 1 the remedy pays
    """
    known = quantization.filter(pl.col("output_error").is_not_null())
    tried = known.filter(pl.col("remedy") != NONE)["scheme"].unique().to_list()
    known = known.filter(pl.col("scheme").is_in(tried))
    without = known.filter(remedy=NONE).select(*_SAME, without="output_error")
    plain = known.filter(~pl.col("remedy").is_in([SMOOTH, CLIP])).with_columns(told="remedy")
    papers = known.filter(remedy=SMOOTH, setting=f"alpha {ALPHAS[0]}").with_columns(told="remedy")
    best = known.filter(pl.col("best")).unique([*_SAME, "remedy"], maintain_order=True)
    best = best.with_columns(told=pl.col("remedy") + "_best")
    rows = pl.concat([plain, papers, best]).join(without, on=_SAME, how="inner", maintain_order="left")
    left = pl.when(pl.col("without") > 0).then(pl.col("output_error") / pl.col("without"))
    order = pl.Enum([*TOLD])
    return rows.with_columns(left=left).sort(pl.col("told").cast(order), maintain_order=True)
