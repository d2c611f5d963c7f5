"""The tables that rule rank_neurons writes."""

import polars as pl

from outlier_features.files.columns import SEQUENCE, THE_NEURON, TOKEN
from outlier_features.files.tables import Column, Table

WITHOUT_HIGH_NORM = "without_high_norm"
POPULATION = Column(
    "population", pl.String, "`all` positions, `without_first`: without the first and special tokens, or "
    "`without_high_norm`: without those whose vector in resid_post of the block has more than `neurons.high_norm` "
    "times the median norm of that sequence and block"
)  # fmt: skip

NEURONS = Table(
    "neurons",
    "population, layer, expert, neuron, side, rank: the sequences with the largest and the smallest activation, each "
    "with the first position where it stands",
    (
        POPULATION,
        *THE_NEURON,
        Column("side", pl.String, "`max` or `min`"),
        Column("rank", pl.UInt16, "from 1; of equal values the earlier sequence stands first"),
        Column("value", pl.Float32, "mlp_act there", "activation"),
        SEQUENCE,
        TOKEN,
    ),
)

NEURON_STATISTICS = Table(
    "neuron_statistics",
    "population, layer, expert, neuron: mlp_act over all positions of the population (of an expert, over those that "
    "were routed to it)",
    (
        POPULATION,
        *THE_NEURON,
        Column("tokens", pl.Int64, "positions", "tokens"),
        Column("active_share", pl.Float64, "of them, those with mlp_act > 0", "share"),
        Column("mean", pl.Float64, "mean", "activation"),
        Column("std", pl.Float64, "standard deviation, of the positions as they are (n, not n - 1)", "activation"),
        Column("kurtosis", pl.Float64, "E[(x - mean)^4] / std^4 (Pearson: 3 for a normal distribution); null where std "
               "is 0"),
        Column("min", pl.Float32, "smallest", "activation"),
        Column("max", pl.Float32, "largest", "activation"),
        Column("histogram_low", pl.Float64, "lower end of the first bin", "activation"),
        Column("histogram_width", pl.Float64, "width of each bin, a power of 2; bins begin at its multiples, and a bin "
               "holds its lower end", "activation"),
        Column("histogram", pl.List(pl.UInt32), "positions in each of at most 64 bins, from that of `min` to that of "
               "`max`", "tokens"),
    ),
)  # fmt: skip
