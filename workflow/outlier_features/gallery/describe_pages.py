"""What a neuron does by its weights: the dims that it writes, and the tokens whose logits it moves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from outlier_features.gallery.choose_pages import banks_of
from outlier_features.gallery.gallery_schema import GALLERY_NEURONS
from outlier_features.gallery.logit_effects import LogitEffects
from outlier_features.gallery.written_weights import Array, WrittenWeights

MOST_WRITTEN = 5  # dims that a neuron is said to write
_COLUMNS = ("writes_dims", "writes", "writes_weights", "top_tokens", "top_logits", "bottom_tokens", "bottom_logits")


def describe_pages(
    pages: pl.DataFrame, dims: Sequence[int], weights: WrittenWeights, effects: LogitEffects | None
) -> pl.DataFrame:
    """The rows of `pages`, of `choose_pages`, with what follows from weights.

    dims      that rules selected
    effects   None: the model has no unembedding
    """
    found: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    for bank, rows in banks_of(pages):
        written = weights.columns(bank, rows["neuron"].to_numpy())
        extreme = rows["extreme"].fill_null(0).to_numpy().astype(np.float64)
        _add(found, len(rows), _dims_written(written, extreme, dims))
        directions = None
        if written is not None and effects is not None:
            directions = effects.directions(bank.layer, written)
        tokens: dict[str, list[Any]] = {}
        if directions is not None and effects is not None:
            for side, moved in zip(("top", "bottom"), effects.largest(directions), strict=True):
                tokens[f"{side}_tokens"] = [one["tokens"] for one in moved]
                tokens[f"{side}_logits"] = [one["logits"] for one in moved]
        _add(found, len(rows), {name: tokens.get(name) for name in _COLUMNS[3:]})
    return pages.with_columns(
        pl.Series(name, column, dtype=GALLERY_NEURONS.schema[name]) for name, column in found.items()
    )


def _add(found: dict[str, list[Any]], count: int, columns: dict[str, list[Any] | None]) -> None:
    for name, values in columns.items():
        found[name] += [None] * count if values is None else values


def _dims_written(written: Array | None, extreme: Array, dims: Sequence[int]) -> dict[str, list[Any] | None]:
    if written is None:
        return dict.fromkeys(_COLUMNS[:3])
    of_dims = written[list(dims)]
    contributions = of_dims * extreme
    order = np.argsort(-np.abs(contributions), axis=0, kind="stable")[:MOST_WRITTEN]
    return {
        "writes_dims": np.array(dims, np.int64)[order].T.tolist(),
        "writes": np.take_along_axis(contributions, order, axis=0).T.tolist(),
        "writes_weights": np.take_along_axis(of_dims, order, axis=0).T.tolist(),
    }
