"""The tables that rule prune_experts writes."""

import polars as pl

from outlier_features.files.columns import SEQUENCE
from outlier_features.files.tables import Column, Table

_VARIANT = Column("variant", pl.UInt16, "index of the variant of the model, from 0, the unchanged model")

_TOP1 = Column("top1_probability", pl.Float64, "largest probability of any token, mean over predicted tokens", "share")

EXPERT_ABLATION = Table(
    "expert_ablation",
    "variant of the model: which experts write nothing, and how well it then predicts the sample; no row where rule "
    "super_expert names none",
    (
        _VARIANT,
        Column("target", pl.String, "`baseline` (nothing), `expert` (super experts) or `random`"),
        Column("rule", pl.String, "the rule that found the super experts; null for `random`"),
        Column("site", pl.String, "`expert_out`, which is set to zero at all positions"),
        Column("layers", pl.String, "block of each expert, joined by `+`"),
        Column("experts", pl.String, "the experts, joined by `+`; `shared` is the shared one"),
        Column("number", pl.UInt32, "experts that write nothing", "experts"),
        Column("seed", pl.UInt32, "of a random draw; null otherwise"),
        Column("positions", pl.String, "where: `all`"),
        Column("value", pl.String, "`zero`"),
        Column("tokens", pl.Int64, "predicted tokens", "tokens"),
        Column("nll", pl.Float64, "their mean negative log-likelihood; null where it is not finite", "nats per token"),
        Column("perplexity", pl.Float64, "exp(nll); null where it is not finite"),
        Column("bits_per_byte", pl.Float64, "the same per UTF-8 byte of their text", "bits per byte"),
        _TOP1,
    ),
)  # fmt: skip

EXPERT_ABLATION_SEQUENCES = Table(
    "expert_ablation_sequences",
    "variant, sequence: the sums and means of `expert_ablation` for each sequence by itself",
    (
        _VARIANT, SEQUENCE,
        Column("tokens", pl.Int64, "predicted tokens", "tokens"),
        Column("bytes", pl.Int64, "UTF-8 bytes of their text", "bytes"),
        Column("nll", pl.Float64, "sum of their negative log-likelihoods; null where it is not finite", "nats"),
        _TOP1,
    ),
)  # fmt: skip
