"""The table that rule record_surface writes."""

import polars as pl

from outlier_features.files.columns import LAYER, SEQUENCE, SITE
from outlier_features.files.tables import Column, Table

SURFACE = Table(
    "surface",
    "cell of neighbouring tokens and dims, in the sequence and layer of the run's largest abs(x): on resid_post, or on "
    "the site that has it where the run lacks resid_post; 256 x 512 cells at most",
    (
        SITE, LAYER, SEQUENCE,
        Column("token_first", pl.UInt32, "first position of the cell; excluded ones and the tokens with the largest "
               "abs(x) are not pooled (up to 32 each)"),
        Column("token_last", pl.UInt32, "last position of the cell"),
        Column("excluded", pl.Boolean, "the cell's positions are those between that are the first of the sequence or "
               "special tokens; else those that are not. A cell has no others, and no padding"),
        Column("dim_first", pl.UInt32, "first dim of the cell; up to 64 selected dims and the 16 with the largest "
               "abs(x) of each kind of positions are not pooled"),
        Column("dim_last", pl.UInt32, "last dim of the cell"),
        Column("selected", pl.Boolean, "the cell is of one dim that a rule that is followed up, on the site's "
               "basis, selects in any population"),
        Column("max_abs", pl.Float32, "largest abs(x) in the cell", "activation"),
        Column("value", pl.Float32, "the x that has it, signed", "activation"),
        Column("token", pl.UInt32, "its position, the first of equals"),
        Column("dim", pl.UInt32, "its dim, the first of equals at that position"),
        Column("token_text", pl.String, "of a cell of one position: the text that the token covers; of a special "
               "token, its name"),
    ),
)  # fmt: skip
