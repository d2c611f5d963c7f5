"""The tables that rule record_examples writes: what the pages of the gallery show."""

import polars as pl

from outlier_features.files.columns import DIM, LAYER, SEQUENCE, THE_NEURON, TOKEN
from outlier_features.files.tables import Column, Table

_POPULATION = Column("population", pl.String, "as in `neurons`")
_VALUES = Column("values", pl.List(pl.Float32), "at each position of the sequence, padding left out", "activation")

GALLERY_NEURONS = Table(
    "gallery_neurons",
    "layer, expert, neuron that has a page",
    (
        *THE_NEURON,
        Column("reasons", pl.List(pl.String), "why: `feeds dim 507`, `kurtosis` (among those of the largest), `all`"),
        Column("writes_dims", pl.List(pl.UInt32), "dims that rules selected and that it writes most: the largest "
               "abs(contribution) at its extreme tokens first"),
        Column("writes", pl.List(pl.Float64), "to each of them: mlp_act at its extreme token x W_down", "activation"),
        Column("writes_weights", pl.List(pl.Float64), "W_down from the neuron to each of them"),
        Column("top_tokens", pl.List(pl.UInt32), "ids of the tokens whose logits its direction raises most: W_down's "
               "column times the gains of the norm behind the MLP, if there is one, and of the final norm (before a "
               "LayerNorm's, centred), times the unembedding; the norms' divisions are left out; null where no such "
               "way leads to an unembedding"),
        Column("top_logits", pl.List(pl.Float64), "by how much, per unit of activation"),
        Column("bottom_tokens", pl.List(pl.UInt32), "ids of the tokens whose logits it lowers most"),
        Column("bottom_logits", pl.List(pl.Float64), "by how much, per unit of activation"),
        Column("nearest", pl.List(pl.String), "of the neurons that have pages, those with the largest cosine of "
               "activations over the run's positions, as `L11N1229` or `L11E3N1229`; experts are left out"),
        Column("cosines", pl.List(pl.Float64), "their cosines"),
    ),
)  # fmt: skip

GALLERY_EXAMPLES = Table(
    "gallery_examples",
    "layer, expert, neuron, interval, rank: examples of what is typical, over all positions",
    (
        *THE_NEURON,
        Column("interval", pl.UInt8, "from 0, the lowest, of ten equal parts of the range from the neuron's minimum to "
               "its maximum over the run; each holds its lower end, the last both"),
        Column("low", pl.Float64, "lower end of the interval", "activation"),
        Column("high", pl.Float64, "upper end", "activation"),
        Column("in_interval", pl.Int64, "positions of the run whose activation is in it", "tokens"),
        Column("rank", pl.UInt8, "from 1, the smallest hash of (seed, text, position); at most 5; null, with what "
               "follows, where the interval is empty"),
        Column("value", pl.Float32, "mlp_act there", "activation"),
        SEQUENCE,
        TOKEN,
    ),
)  # fmt: skip

GALLERY_VALUES = Table(
    "gallery_values",
    "layer, expert, neuron that has a page, sequence of one of its examples: mlp_act at each position (NaN where an "
    "expert was not given the token)",
    (*THE_NEURON, SEQUENCE, _VALUES),
)

GALLERY_DIMS = Table(
    "gallery_dims",
    "layer, dim that has a page (null: the norm of the whole vector), sequence: resid_post at each position",
    (LAYER, DIM, SEQUENCE, _VALUES),
)
