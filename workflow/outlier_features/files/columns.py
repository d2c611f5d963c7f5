"""Columns that tables of several stages have."""

import polars as pl

from outlier_features.files.tables import Column

POPULATION: Column = Column(
    "population", pl.String, "`all` positions, or `without_first`: without the first and special tokens"
)
RULE: Column = Column("rule", pl.String, "the rule by which the row was selected")
SITES: Column = Column("sites", pl.String, "the sites the rule was applied to, joined by `+`")
SITE: Column = Column("site", pl.String, "where in a block the tensor is taken")
SEQUENCE: Column = Column("sequence", pl.UInt32, "index of the sequence, from 0")
LAYER: Column = Column("layer", pl.UInt16, "index of the block, from 0")
TOKEN: Column = Column("token", pl.UInt32, "position in the sequence, from 0")
DIM: Column = Column("dim", pl.UInt32, "hidden dimension, from 0")
THE_NEURON = (
    LAYER,
    Column(
        "expert",
        pl.UInt16,
        "of a mixture of experts, the routed expert that the neuron is of; null in a dense "
        "MLP, and in a shared expert, which every token goes through",
    ),
    Column("neuron", pl.UInt32, "index in mlp_act of the block or of the expert, from 0"),
)

# Shares of a (sequence, dim) pair by each reading of the two shares that rules of kind systematic ask for.
READINGS = {
    "blocks": "blocks with a hit at any of the sites / blocks of the model; of a dump, the blocks it has",
    "sites_share": "site tensors with a hit / site tensors that the model has",
    "union": "positions with a hit at any site tensor / positions of the population",
    "pooled": "hits / (positions x site tensors)",
    "affected": "share of positions with a hit, averaged over the site tensors that have one",
}
