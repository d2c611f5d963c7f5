"""The tables that rule knock_out writes."""

import polars as pl

from outlier_features.files.columns import LAYER
from outlier_features.files.tables import Column, Table

_VARIANT = Column("variant", pl.UInt32, "index of the variant of the model, from 0")

KNOCK_OUTS = Table(
    "knock_outs",
    "variant of the model: what of it was off, or set or scaled, and how well it then predicts the sample",
    (
        _VARIANT,
        Column("target", pl.String, "`baseline` (nothing; once for each sample), `attention`, `mixer`, `mlp` (what "
               "they add to the residual stream is zero), `head` (its slice of what attention's last matrix reads is "
               "zero), `massive_tokens` (dims on resid_post, each at its step-up block, where it is massive) or "
               "`weight` (super weights)"),
        Column("layers", pl.String, "blocks, joined by `+`: of each dim or weight its own; else all that were off"),
        Column("head", pl.UInt32, "the head, from 0; null for other targets"),
        Column("dims", pl.String, "dims of `massive_tokens`, rows of weights, joined by `+`"),
        Column("cols", pl.String, "columns of the weights, joined by `+`"),
        Column("positions", pl.String, "`all`; of `massive_tokens` these of each dim: `massive`, or of them only the "
               "excluded (`massive_first`: first of a sequence, special) or only the rest (`massive_later`)"),
        Column("value", pl.String, "`zero`; `mean` of each dim in the unchanged model over those positions; `scaled`; "
               "`restored` (the weight zero, and in each sequence the largest abs(x) of its row on mlp_down put back)"),
        Column("scale", pl.Float64, "of `scaled`, what the weights are multiplied by; else null"),
        Column("tokens", pl.Int64, "predicted tokens", "tokens"),
        Column("nll", pl.Float64, "their mean negative log-likelihood; null where it is not finite", "nats per token"),
        Column("nll_change", pl.Float64, "nll minus that of the unchanged model on the same tokens", "nats per token"),
        Column("perplexity", pl.Float64, "exp(nll); null where it is not finite"),
        Column("bits_per_byte", pl.Float64, "nll per UTF-8 byte of their text", "bits per byte"),
        Column("top1_probability", pl.Float64, "largest probability of any token, mean over predicted tokens", "share"),
    ),
)  # fmt: skip

KNOCK_OUT_DIMS = Table(
    "knock_out_dims",
    "variant, layer, dim on resid_post: a dim that a rule which lists massive activations selects, at its massive "
    "tokens in the sample; and any dim at any token (dim null)",
    (
        _VARIANT, LAYER,
        Column("dim", pl.UInt32, "hidden dimension; null: any"),
        Column("places", pl.Int64, "the dim's massive tokens (sequence, token) in the sample; null for any dim",
               "positions"),
        Column("mean", pl.Float64, "mean of x over these; null for any dim, and where it is not finite", "activation"),
        Column("unchanged_mean", pl.Float64, "the same in the unchanged model", "activation"),
        Column("max_abs", pl.Float64, "largest abs(x) at these, or at all positions; null where it is not finite",
               "activation"),
        Column("unchanged_max_abs", pl.Float64, "the same in the unchanged model", "activation"),
    ),
)  # fmt: skip

SPIKES = Table(
    "spikes",
    "layer with a dense MLP: the spikes on both sides of its last linear layer, in one pass over the unchanged model",
    (
        LAYER,
        Column("mlp_act", pl.Float64, "value with the largest abs(x) on mlp_act", "activation"),
        Column("mlp_act_token", pl.UInt32, "its position in the sequence that was run"),
        Column("col", pl.UInt32, "its neuron: the column of `weight`"),
        Column("mlp_down", pl.Float64, "value with the largest abs(x) on mlp_down", "activation"),
        Column("mlp_down_token", pl.UInt32, "its position in the sequence that was run"),
        Column("row", pl.UInt32, "its dim: the row of `weight`"),
        Column("weight", pl.Float64, "W_down[row, col]", "weight"),
        Column("spikes", pl.Boolean, "both abs(x) are above the threshold of rule `super_weight`"),
        Column("found", pl.Boolean, "the search, which sets each weight that it finds to zero, found this one"),
    ),
)  # fmt: skip
