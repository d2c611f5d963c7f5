"""The tables that rule ablate_dims writes."""

import polars as pl

from outlier_features.files.columns import SEQUENCE
from outlier_features.files.tables import Column, Table

_VARIANT = Column("variant", pl.UInt16, "index of the variant of the model, from 0, the unchanged model")

_TOP1 = Column("top1_probability", pl.Float64, "largest probability of any token, mean over predicted tokens", "share")

ABLATION = Table(
    "ablation",
    "variant of the model: what was set where to which value, and how well it then predicts the sample",
    (
        _VARIANT,
        Column("target", pl.String, "`baseline` (nothing), `dims` (selected), `weight` (super weights) or `random`"),
        Column("rule", pl.String, "the rule that selected the dims or found the weights; null for `random`"),
        Column("site", pl.String, "where dims are set; `mlp_down.weight` for weights"),
        Column("layers", pl.String, "block of each dim or weight, joined by `+`; null: in every block"),
        Column("dims", pl.String, "the dims, joined by `+`; of a weight, the row"),
        Column("cols", pl.String, "columns of the weights, joined by `+`"),
        Column("number", pl.UInt32, "dims or weights that are set", "dims or weights"),
        Column("seed", pl.UInt32, "of a random draw; null otherwise"),
        Column("positions", pl.String, "where: `excluded` (first of a sequence, special tokens), `rest` or `all`"),
        Column("value", pl.String, "`zero`, or `mean`: of each dim in the unchanged model over those positions"),
        Column("tokens", pl.Int64, "predicted tokens", "tokens"),
        Column("nll", pl.Float64, "their mean negative log-likelihood; null where it is not finite", "nats per token"),
        Column("perplexity", pl.Float64, "exp(nll); null where it is not finite"),
        Column("bits_per_byte", pl.Float64, "the same per UTF-8 byte of their text", "bits per byte"),
        _TOP1,
    ),
)  # fmt: skip

ABLATION_SEQUENCES = Table(
    "ablation_sequences",
    "variant, sequence: the sums and means of `ablation` for each sequence by itself",
    (
        _VARIANT, SEQUENCE,
        Column("tokens", pl.Int64, "predicted tokens", "tokens"),
        Column("bytes", pl.Int64, "UTF-8 bytes of their text", "bytes"),
        Column("nll", pl.Float64, "sum of their negative log-likelihoods; null where it is not finite", "nats"),
        _TOP1,
    ),
)  # fmt: skip
