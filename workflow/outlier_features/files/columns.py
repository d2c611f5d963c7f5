"""Columns that tables of several stages have."""

import polars as pl

from outlier_features.files.tables import Column

POPULATION = Column(
    "population", pl.String, "`all` positions, or `without_first`: without the first and special tokens"
)
RULE = Column("rule", pl.String, "the rule by which the row was selected")
SITES = Column("sites", pl.String, "the sites the rule was applied to, joined by `+`")
SITE = Column("site", pl.String, "where in a block the tensor is taken")
SEQUENCE = Column("sequence", pl.UInt32, "index of the sequence, from 0")
LAYER = Column("layer", pl.UInt16, "index of the block, from 0")
TOKEN = Column("token", pl.UInt32, "position in the sequence, from 0")
DIM = Column("dim", pl.UInt32, "hidden dimension, from 0")
