"""Attention sinks (Gu et al. 2024, https://arxiv.org/abs/2410.10781): keys that draw attention whatever is asked.

`alpha` of a key is the mean, over the queries that can see it, of the probability that they give it. A key is a sink of
a head in a sequence if its alpha is above a threshold (0.3); its sink rate is the share of (sequence, layer, head) in
which it is one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from outlier_features.attention.sinks_schema import SINKS
from outlier_features.errors import InputError
from outlier_features.populations import EXCLUDED, PADDING

Array = np.ndarray[Any, Any]


def alpha(pattern: Array, visible: Array) -> Array:
    """Alpha of every key, float64 (heads, T), or (heads, T + 1) where the last column is a learned sink.

    pattern   probabilities of one sequence, (heads, T, T or T + 1), queries in rows
    visible   bool (T, T): which keys (columns) a query (row) can see; a learned sink is seen by all queries
    """
    seen = np.ones(pattern.shape[-2:], bool)
    seen[:, : visible.shape[1]] = visible
    return np.asarray((pattern * seen).sum(axis=-2, dtype=np.float64) / seen.sum(axis=0))


@dataclass
class _LayerSums:
    """Sums over sequences of a layer; the last key is the learned sink, or nothing."""

    heads: int
    kv_heads: Sequence[int] | None
    learned: bool
    alpha: Array  # float64 (heads, T + 1)
    sinks: Array  # int64 (heads, T + 1)
    could: Array  # bool (T, T): some query saw this key
    did: Array  # bool (T, T): some head gave it more than 0


class SinkCounter:
    """Alpha and sinks of every layer, head and key, over N sequences of at most T positions.

    parts       uint8 (N, T) of the sequences to be added, as in `populations`: which positions are excluded, or padding
    threshold   a key is a sink if its alpha is above this
    """

    def __init__(self, parts: Array, threshold: float):
        self._parts = parts
        self._threshold = threshold
        self._layers: dict[int, _LayerSums] = {}

    def add(self, layer: int, kv_heads: Sequence[int] | None, pattern: Array, visible: Array) -> None:
        """Count one sequence's patterns of a layer, (heads, T, T or T + 1).

        kv_heads   the KV head that each head reads, or None where each has its own
        visible    bool (T, T): which keys (columns) a query (row) can see
        """
        heads, size, keys = pattern.shape
        length = self._parts.shape[1]
        if layer not in self._layers:
            zeros, nowhere = np.zeros((heads, length + 1)), np.zeros((length, length), bool)
            self._layers[layer] = _LayerSums(
                heads, kv_heads, keys > size, zeros, zeros.astype(np.int64), nowhere, nowhere.copy()
            )
        sums, found = self._layers[layer], alpha(pattern, visible)
        places = [*range(size), length][:keys]
        sums.alpha[:, places] += found
        sums.sinks[:, places] += found > self._threshold
        sums.could[:size, :size] |= visible
        sums.did[:size, :size] |= (pattern[..., :size] > 0).any(axis=0)

    def require_seen(self) -> None:
        """Raise `InputError` where queries give exactly 0 to all keys at some distance that no mask hides from them.

        Such keys are hidden by something that was not found, and alpha would count queries that cannot see them. In
        float16, where small probabilities are 0, that says nothing.
        """
        for layer, sums in self._layers.items():
            length = len(sums.could)
            for distance in range(-length + 1, length):
                could, did = np.diagonal(sums.could, -distance), np.diagonal(sums.did, -distance)
                if could.any() and not did.any():
                    raise InputError(
                        f"layer {layer}: no query gives anything to the key {distance} positions before it, though no "
                        "mask was found that hides it; a sink rate would be wrong"
                    )

    def table(self) -> pl.DataFrame:
        """The table of sinks: a row for each layer, head and key that a sequence has."""
        frames = [self._rows(layer, sums) for layer, sums in sorted(self._layers.items())]
        return pl.concat([pl.DataFrame(schema=SINKS.schema), *frames])

    def _rows(self, layer: int, sums: _LayerSums) -> pl.DataFrame:
        counted = np.append((self._parts != PADDING).sum(axis=0), len(self._parts) if sums.learned else 0)
        excluded = np.append((self._parts == EXCLUDED).sum(axis=0), 0)
        keys, heads = np.flatnonzero(counted), np.arange(sums.heads)
        length = self._parts.shape[1]
        columns: Mapping[str, Any] = {
            "layer": layer,
            "head": np.repeat(heads, len(keys)),
            "kv_head": None if sums.kv_heads is None else np.repeat(np.asarray(sums.kv_heads), len(keys)),
            "token": np.tile(keys, sums.heads),
            "learned": np.tile(keys == length, sums.heads),
            "alpha": (sums.alpha[:, keys] / counted[keys]).reshape(-1),
            "sink_rate": (sums.sinks[:, keys] / counted[keys]).reshape(-1),
            "sequences": np.tile(counted[keys], sums.heads),
            "excluded": np.tile(excluded[keys], sums.heads),
        }
        frame = pl.DataFrame(columns).with_columns(token=pl.when(~pl.col("learned")).then("token"))
        return frame.pipe(SINKS.cast)
