"""Columns of the tables on quantization, and the values of two of them."""

from typing import Final

import polars as pl

from outlier_features.files.tables import Column

# Values of `quantized`.
INPUT, WEIGHT, BOTH = "x", "w", "xw"
# Values of `remedy`.
NONE: Final = "none"
EXACT_DIMS: Final = "exact_dims"
EXACT_RANDOM: Final = "exact_random"
EXACT_POSITIONS: Final = "exact_positions"
EXACT_SUPER_WEIGHT: Final = "exact_super_weight"
SMOOTH: Final = "smooth"
HADAMARD: Final = "hadamard"
CLIP: Final = "clip"
# Of `smooth`, the paper's own first.
ALPHAS: tuple[float, ...] = (0.5, 0.25, 0.75)

MODULE: Column = Column(
    "module", pl.String, "the linear layer, by transformers' name of its module or of its experts' tensor"
)
SCHEME: Column = Column("scheme", pl.String, "how values are rounded, see docs/definitions.md")
REMEDY: Column = Column(
    "remedy",
    pl.String,
    "`none`; exact: `exact_dims` (selected), `exact_random` (as many), `exact_positions` (first and special tokens, "
    "and massive ones if few), `exact_super_weight`; changed before the rounding: `smooth`, `hadamard`, `clip`",
)
SETTING: Column = Column(
    "setting", pl.String, "of the remedy: alpha, seed, quantile, dims or weights; null where it has none"
)
QUANTIZED: Column = Column(
    "quantized", pl.String, "what is rounded: `x`, the layer's input; `w`, its weight; `xw`, both"
)
