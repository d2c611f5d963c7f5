"""The tables that rule summarize_layers writes."""

import polars as pl

from outlier_features.files.columns import LAYER, POPULATION, SITE, TOKEN
from outlier_features.files.tables import Column, Table

LAYERS = Table(
    "layers",
    "population, site, layer",
    (
        POPULATION, SITE, LAYER,
        Column("attention", pl.Boolean, "the block mixes tokens by softmax attention, as in a hybrid not every block "
               "does; null where that is not known, as of a dump"),
        *(Column(f"top{k}", pl.Float64, f"rank {k} of abs(x) in a sequence, averaged over sequences", "activation")
          for k in (1, 2, 3)),
        Column("median", pl.Float64, "median of abs(x) in a sequence, averaged over sequences", "activation"),
        Column("mean", pl.Float64, "mean of abs(x) over all values", "activation"),
        Column("max", pl.Float64, "largest abs(x) over all sequences", "activation"),
        Column("rms", pl.Float64, "root of the mean square over all values", "activation"),
        Column("kurtosis_flat_excess", pl.Float64, "Fisher kurtosis of all values of the site and layer (0 if normal)"),
        Column("kurtosis_token", pl.Float64, "Pearson kurtosis over a position's dims (3 if normal), their mean"),
        Column("kurtosis_channel_rms", pl.Float64, "mean_h(s_h^4) / mean_h(s_h^2)^2, s_h the RMS of dim h; 1..d"),
        Column("occurrences", pl.Int64, "values with abs(x) >= 6", "values"),
        Column("dims_hit", pl.Int64, "dims with a value with abs(x) >= 6", "dims"),
        Column("positions_hit", pl.Int64, "positions (sequence, token) with a value with abs(x) >= 6", "positions"),
        Column("positions", pl.Int64, "positions of the population over all sequences", "positions"),
    ),
)  # fmt: skip

DISTRIBUTION = Table(
    "distribution",
    "population, site, layer, bin of abs(x) that has a value: half an octave, low <= abs(x) < high",
    (
        POPULATION, SITE, LAYER,
        Column("low", pl.Float64, "smallest abs(x) of the bin; 0 for that of the zeros", "activation"),
        Column("high", pl.Float64, "the next bin's smallest abs(x); of the zeros' bin 0, but 2^-126 where the "
               "activations are float32, whose smaller values are in it", "activation"),
        Column("values", pl.Int64, "values in the bin, exact; over the bins they sum to positions x dims", "values"),
    ),
)  # fmt: skip

SITE_POSITIONS = Table(
    "site_positions",
    "population, site, layer, token: every position that the population has in some sequence",
    (
        POPULATION, SITE, LAYER, TOKEN,
        Column("sequences", pl.Int64, "sequences that have this position in the population; a token of each is counted",
               "sequences"),
        Column("mean", pl.Float64, "mean of x over these tokens and all dims", "activation"),
        Column("mean_square", pl.Float64, "mean of x^2 over these tokens and all dims", "activation^2"),
    ),
)  # fmt: skip
