"""The tables that rule attribute_logits writes."""

import polars as pl

from outlier_features.files.columns import SEQUENCE, TOKEN
from outlier_features.files.tables import Column, Table

_PART = Column(
    "part", pl.String, "what adds to the stream: `embeddings`, `head`, `neuron`, `attention_bias` and `mlp_bias` (of "
    "the last matrix and of a norm behind it); `attention`, `mlp`, `mixer`, `cross_attention` where the sublayer is "
    "one part; `final_bias` (of the final norm and the unembedding); `rounding`, what is left of the logit"
)  # fmt: skip
_LAYER = Column("layer", pl.UInt16, "index of the block, from 0; null where the part is of none")
_INDEX = Column("index", pl.UInt32, "of the head or neuron in its block, from 0; else null")
_CENTRED = "contribution to the centred logit of the token that comes next"


def _extreme(which: str) -> tuple[Column, ...]:
    return (
        Column(which, pl.Float32, f"{which} {_CENTRED}", "logit"),
        Column(f"{which}_sequence", pl.UInt32, "index of its sequence; of equal ones the first"),
        Column(f"{which}_token", pl.UInt32, "the position that predicts"),
        Column(f"{which}_target", pl.UInt32, "id of the token that comes next"),
    )


LOGIT_ATTRIBUTION = Table(
    "logit_attribution",
    "part, layer, index: its direct contributions to the centred logit (the logit less the mean over the vocabulary) "
    "of the token that comes next; at each position those of all rows sum to that logit",
    (
        _PART,
        _LAYER,
        Column("expert", pl.UInt16, "null: neurons of routed experts are not told apart, see part `mlp`"),
        _INDEX,
        Column("positions", pl.Int64, "positions that predict a token", "tokens"),
        Column("mean", pl.Float64, f"mean {_CENTRED}", "logit"),
        Column("mean_abs", pl.Float64, "mean of its abs", "logit"),
        *_extreme("largest"),
        *_extreme("smallest"),
    ),
)

LOGIT_ATTRIBUTION_TOKENS = Table(
    "logit_attribution_tokens",
    "sequence, token, part, rank: the heads and the neurons of all blocks with the largest abs(contribution) to the "
    "centred logit of one token",
    (
        SEQUENCE,
        TOKEN,
        Column("target", pl.UInt32, "id of the token that comes next"),
        Column("centred_logit", pl.Float32, "its logit in the model's own pass, less the mean over the vocabulary, "
               "before soft-capping", "logit"),
        Column("part", pl.String, "`head` or `neuron`"),
        Column("rank", pl.UInt8, "from 1, at most 5"),
        _LAYER,
        _INDEX,
        Column("value", pl.Float32, _CENTRED, "logit"),
    ),
)  # fmt: skip
