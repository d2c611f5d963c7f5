"""Massive activations, put together over layers, each with its token in the text around it."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from outlier_features.largest import largest_of_each
from outlier_features.tokens.token_text import token_text
from outlier_features.tokens.tokens import Tokens
from outlier_features.visible_text import visible
from outlier_features.wording import ranges

AROUND = 60


@dataclass(frozen=True)
class MassiveSpan:
    """The massive activations of one (sequence, position, dim); value, median and ratio are those of the largest.

    before, token, after   text as it can be shown; `token` is empty for one without text
    """

    dim: int
    sequence: int
    position: int
    excluded: bool
    populations: tuple[str, ...]
    layers: str
    activations: int
    value: float
    layer: int
    median: float
    ratio: float
    token_id: int | None
    before: str
    token: str
    after: str

    @property
    def nameless(self) -> str:
        """What stands for a token without text."""
        return f"position {self.position}" if self.token_id is None else f"token {self.token_id}, without text"


def massive_spans(massive: pl.DataFrame, texts: list[bytes], run: Tokens, most: int) -> tuple[list[MassiveSpan], int]:
    """The `most` largest spans, the largest first, and how many there are in all."""
    key = ("sequence", "token", "dim")
    largest = largest_of_each(massive, "value", *key)
    over_layers = massive.group_by(key).agg(
        pl.col("layer").alias("layers"),
        pl.col("massive_all").any().alias("in_all"),
        pl.col("massive_without_first").any().alias("in_without_first"),
    )
    rows = largest.head(most).join(over_layers, on=key, how="left", maintain_order="left")
    return [_span(row, texts, run) for row in rows.iter_rows(named=True)], len(largest)


def _span(row: dict[str, Any], texts: list[bytes], run: Tokens) -> MassiveSpan:
    before, token, after = context(texts, run, row["sequence"], row["token"])
    return MassiveSpan(
        dim=row["dim"],
        sequence=row["sequence"],
        position=row["token"],
        excluded=row["excluded"],
        populations=tuple(name for name in ("all", "without_first") if row[f"in_{name}"]),
        layers=ranges(row["layers"]),
        activations=len(row["layers"]),
        value=row["value"],
        layer=row["layer"],
        median=row["median"],
        ratio=row["ratio"],
        token_id=row["token_id"],
        before=before,
        token=token,
        after=after,
    )


def context(texts: list[bytes], run: Tokens, sequence: int, position: int) -> tuple[str, str, str]:
    """Up to 60 characters before a token, the token, and up to 60 after it, as they can be shown.

    A special token covers no text; its name stands between what precedes and what follows it.
    """
    first, last = run.offsets[sequence, position]
    before = texts[sequence][:first].decode(errors="replace")
    after = texts[sequence][last:].decode(errors="replace")
    return (
        ("…" if len(before) > AROUND else "") + visible(before[-AROUND:]),
        visible(token_text(texts, run, sequence, position) or ""),
        visible(after[:AROUND]) + ("…" if len(after) > AROUND else ""),
    )
