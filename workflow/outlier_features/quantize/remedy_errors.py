"""What is told of the table `quantization`: errors of layers by scheme, and what each remedy leaves of them."""

import re

import polars as pl

from outlier_features.files.quantization_columns import (
    ALPHAS,
    BOTH,
    CLIP,
    EXACT_DIMS,
    EXACT_POSITIONS,
    EXACT_RANDOM,
    EXACT_SUPER_WEIGHT,
    HADAMARD,
    INPUT,
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
    EXACT_POSITIONS: "first tokens exact",
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


def of_outputs(quantization: pl.DataFrame) -> bool:
    """Whether errors of layers' outputs are known: behind a dump no weights are, and errors are of what layers read."""
    return bool(quantization["output_error"].is_not_null().any())


def measured(quantization: pl.DataFrame) -> pl.DataFrame:
    """The rows of the table that have an error, with

    error    `output_error`; of a dump ||X - Q(X)|| / ||X||, which is 10^(-sqnr_db / 20)
    module   of a dump the layer and site of what is read
    kind     what the linear layer is called in every block, or the site
    """
    if of_outputs(quantization):
        kind = pl.col("module").map_elements(kind_of, return_dtype=pl.String)
        return quantization.with_columns(error="output_error", kind=kind).drop_nulls("error")
    named = pl.format("layer {}, {}", "layer", "site")
    rows = quantization.with_columns(error=10 ** (-pl.col("sqnr_db") / 20), module=named, kind="site")
    return rows.drop_nulls("error")


def whole(rows: pl.DataFrame) -> pl.DataFrame:
    """Of measured rows those with as much rounded as can be: input and weight, or of a dump the input."""
    return rows.filter(quantized=BOTH if (rows["quantized"] == BOTH).any() else INPUT)


def remedy_errors(rows: pl.DataFrame) -> pl.DataFrame:
    """Of measured rows one for each layer, scheme, setting of a remedy, what is quantized, and population.

    told     a key of `TOLD`; of `smooth` and `clip` the best setting stands for all, and alpha 0.5 for itself
    left     the error over that of the same layer without a remedy: below 1 the remedy pays
    """
    tried = rows.filter(pl.col("remedy") != NONE)["scheme"].unique().to_list()
    rows = rows.filter(pl.col("scheme").is_in(tried))
    without = rows.filter(remedy=NONE).select(*_SAME, without="error")
    of_several = pl.col("remedy").is_in([SMOOTH, CLIP])
    plain = rows.filter(~of_several | (pl.col("setting") == f"alpha {ALPHAS[0]}")).with_columns(told="remedy")
    best = rows.filter(of_several).sort("error", maintain_order=True)
    best = best.unique([*_SAME, "remedy"], keep="first", maintain_order=True).with_columns(
        told=pl.col("remedy") + "_best"
    )
    found = pl.concat([plain, best]).join(without, on=_SAME, how="inner", maintain_order="left")
    left = pl.when(pl.col("without") > 0).then(pl.col("error") / pl.col("without"))
    return found.with_columns(left=left).sort(pl.col("told").cast(pl.Enum([*TOLD])), maintain_order=True)
