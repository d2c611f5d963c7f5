"""Which tokens a prefix should hold, so that their outliers lie in it and not in the text (PrefixQuant, Chen 2024).

In https://github.com/ChenMnZ/PrefixQuant this is `get_prefixed_tokens` in `utils/stat_utils.py`. There an only id is
dropped where it was counted, over all layers, fewer times than a tenth of the sequences; here, where fewer than a tenth
of the sequences have it. And a text without outlier tokens has no prefix, where that program ends with an error.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

Array = np.ndarray[Any, Any]
THRESHOLD = 64.0
_LEAST_SHARE = 0.1  # of the sequences, that an only id must be in


def outlier_tokens(largest: Array, mask: Array) -> Array:
    """Where the largest abs(x) of a token is above 64 medians of its sequence, the lower middle value; bool (N, T).

    largest   float32 (N, T), at the input of a layer's down projection
    mask      bool (N, T), false at padding
    """
    lengths = mask.sum(axis=1)
    in_order = np.sort(np.where(mask, largest, np.inf), axis=1)
    median = np.take_along_axis(in_order, np.maximum(lengths - 1, 0)[:, None] // 2, axis=1)
    found: Array = mask & (largest > THRESHOLD * median)
    return found


@dataclass(frozen=True)
class Prefix:
    """What outlier tokens say of a prefix.

    rows          of ids that are outlier tokens after the first position, the most frequent first; of equal counts the
                  one in more sequences, then the smaller id
    mean_counts   by layer, outlier tokens in a sequence, the first position counted
    length        how many ids the prefix should have, the appended one not counted
    ids           these, at most so many
    """

    rows: pl.DataFrame
    mean_counts: Mapping[int, float]
    length: int
    ids: list[int]

    @classmethod
    def of(cls, layers: Mapping[int, Iterable[tuple[Array, Array, Array]]]) -> "Prefix":
        """layers   by layer, piece by piece of the run: largest abs(x) float32, ids and mask (n, T)"""
        found: list[pl.DataFrame] = []
        mean_counts: dict[int, float] = {}
        sequences = 0
        for layer, pieces in layers.items():
            first = count = 0
            for largest, ids, mask in pieces:
                there = outlier_tokens(largest, mask)
                count += int(there.sum())
                there[:, 0] = False
                sequence, token = np.nonzero(there)
                columns = {
                    "token_id": ids[there].astype(np.int64),
                    "sequence": sequence + first,
                    "layer": np.full(len(sequence), layer),
                    "max_abs": largest[sequence, token].astype(np.float64),
                }
                found.append(pl.DataFrame(columns))
                first += len(mask)
            mean_counts[layer], sequences = count / first, first
        rows = (
            pl.concat(found)
            .group_by("token_id")
            .agg(
                pl.len().alias("count"),
                pl.col("sequence", "layer").n_unique().name.suffix("s"),
                pl.col("max_abs").max(),
            )
            .sort("count", "sequences", "token_id", descending=[True, True, False])
        )  # fmt: skip
        length = math.ceil(max(mean_counts.values()))
        chosen: list[int] = rows["token_id"].head(length).to_list()
        if rows.height == 1 and rows["sequences"].item() < _LEAST_SHARE * sequences:
            chosen = []
        return cls(rows, mean_counts, length, chosen)

    def frame(self, appended: int | None) -> pl.DataFrame:
        """The rows of `PREFIX_TOKENS` without their text.

        appended   the id behind the others, None where the model has none
        """
        position = pl.col("token_id").replace_strict(
            self.ids, range(len(self.ids)), default=None, return_dtype=pl.UInt32
        )
        rows = self.rows.with_columns(prefix_position=position, appended=pl.lit(False))
        last = [] if appended is None or not self.length else [appended]
        end = pl.DataFrame({"token_id": last, "prefix_position": [len(self.ids)][: len(last)]})
        frame = pl.concat([rows, end.with_columns(appended=pl.lit(True))], how="diagonal_relaxed")
        return frame.with_columns(chosen=pl.col("prefix_position").is_not_null())
