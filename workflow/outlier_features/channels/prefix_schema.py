"""The table of outlier tokens that rule merge_channels writes."""

import polars as pl

from outlier_features.files.tables import Column, Table

PREFIX_TOKENS = Table(
    "prefix_tokens",
    "token id that is an outlier token after the first position, the most frequent first; last, if there is a prefix, "
    "the token of the beginning of a sequence that is appended to it",
    (
        Column("token_id", pl.UInt32, "in the model's vocabulary"),
        Column("text", pl.String, "what it stands for, with U+FFFD where it is only part of a character"),
        Column(
            "count",
            pl.Int64,
            "times that it is an outlier token, added up over positions and layers; null of the appended one",
            "tokens",
        ),
        Column("sequences", pl.Int64, "in which it is one in any layer; null of the appended one", "sequences"),
        Column("layers", pl.Int64, "in which it is one in any sequence; null of the appended one", "layers"),
        Column(
            "max_abs", pl.Float64, "largest abs(x) of these at the input of down_proj; null of the appended one",
            "activation",
        ),
        Column("chosen", pl.Boolean, "it is part of the prefix"),
        Column("prefix_position", pl.UInt32, "where in the prefix it stands, from 0; null where it is not part of it"),
        Column("appended", pl.Boolean, "it is the token of a sequence's beginning (of its end, where there is none)"),
    ),
)  # fmt: skip
