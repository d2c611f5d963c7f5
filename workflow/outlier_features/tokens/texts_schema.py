"""The table of texts, which every run has beside its tokens."""

import polars as pl

from outlier_features.files.columns import SEQUENCE
from outlier_features.files.tables import Column, Table

TEXTS = Table(
    "texts",
    "sequence",
    (
        SEQUENCE,
        Column("text", pl.String, "what the sequence's tokens are made from: their offsets in `tokens.safetensors` "
               "count its UTF-8 bytes; of a dump its labels, each with a space after it, or nothing"),
    ),
)  # fmt: skip
