"""Columns of the tables of variants of a model: which variant, and how well it predicts the sample."""

import polars as pl

from outlier_features.files.columns import SEQUENCE
from outlier_features.files.tables import Column, Table

VARIANT: Column = Column("variant", pl.UInt16, "index of the variant of the model, from 0, the unchanged model")
_TOKENS = Column("tokens", pl.Int64, "predicted tokens", "tokens")
_TOP1 = Column("top1_probability", pl.Float64, "largest probability of any token, mean over predicted tokens", "share")
SCORES: tuple[Column, ...] = (
    _TOKENS,
    Column("nll", pl.Float64, "their mean negative log-likelihood; null where it is not finite", "nats per token"),
    Column("perplexity", pl.Float64, "exp(nll); null where it is not finite"),
    Column("bits_per_byte", pl.Float64, "the same per UTF-8 byte of their text", "bits per byte"),
    _TOP1,
)


def scores_by_sequence(table: str) -> Table:
    """The table `<table>_sequences`: a row for each variant of `table` and each sequence of the sample."""
    return Table(
        f"{table}_sequences",
        f"variant, sequence: the sums and means of `{table}` for each sequence by itself",
        (
            VARIANT,
            SEQUENCE,
            _TOKENS,
            Column("bytes", pl.Int64, "UTF-8 bytes of their text", "bytes"),
            Column("nll", pl.Float64, "sum of their negative log-likelihoods; null where it is not finite", "nats"),
            _TOP1,
        ),
    )
