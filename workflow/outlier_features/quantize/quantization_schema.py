"""The tables that rule quantize_sites writes."""

import polars as pl

from outlier_features.files.columns import LAYER, SITE
from outlier_features.files.quantization_columns import MODULE, QUANTIZED, REMEDY, SCHEME, SETTING
from outlier_features.files.tables import Column, Table

QUANTIZATION = Table(
    "quantization",
    "linear layer, scheme, remedy, setting, what is quantized, population: error of its input or weight, and output",
    (
        LAYER,
        SITE,
        MODULE,
        SCHEME,
        REMEDY,
        SETTING,
        Column("best", pl.Boolean, "of the settings of `smooth` or `clip`, the one of the smallest output_error"),
        QUANTIZED,
        Column("population", pl.String, "`all`, or `without_first`: no first and no special tokens"),
        Column(
            "sqnr_db",
            pl.Float64,
            "10 log10(sum x^2 / sum (x - Q(x))^2) of what is rounded, over `tokens`, or of the weight; null of `xw`, "
            "and where nothing is lost",
            "dB",
        ),
        Column("output_error", pl.Float64, "||Q(X) Q(W) - X W|| / ||X W||, Frobenius norms", "share"),
        Column("output_error_sd", pl.Float64, "its standard error, where it is of a sample of tokens", "share"),
        Column(
            "tokens",
            pl.Int64,
            "tokens that `sqnr_db` is of: all of the population; with a remedy, `output_tokens`",
            "tokens",
        ),
        Column("output_tokens", pl.Int64, "tokens that `output_error` is of", "tokens"),
        Column("bits", pl.Float64, "mean bits of a rounded value, scales and exact values included", "bits"),
    ),
)

WEIGHT_OUTLIERS = Table(
    "weight_outliers",
    "linear layer, axis of its weight, dim: those whose largest weight, or whose largest activation, stands out most",
    (
        LAYER,
        SITE,
        MODULE,
        Column(
            "axis", pl.String, "`in`: a column of the weight (out, in), which reads dim; `out`: a row, which writes it"
        ),
        Column("dim", pl.UInt32, "index of the column or row"),
        Column("max_abs", pl.Float64, "its largest abs(w)"),
        Column("ratio", pl.Float64, "that, over the mean of all columns' (rows') largest"),
        Column("rank", pl.UInt32, "of the ratio among all, from 1"),
        Column("activation_max_abs", pl.Float64, "largest abs(x) of the dim at the layer's input; null of rows"),
        Column("activation_ratio", pl.Float64, "that, over the mean of all dims' largest"),
        Column("activation_rank", pl.UInt32, "of that ratio among all, from 1"),
        Column("selected", pl.Boolean, "a rule of the run selected the dim at this site, or in the residual stream"),
    ),
)
