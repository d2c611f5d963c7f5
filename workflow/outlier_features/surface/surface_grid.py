"""The table `surface` as a grid of tokens and dims, and a coarser one to draw."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from outlier_features.surface.pooling import largest_indices, pooled_ranges

Array = np.ndarray[Any, Any]
_LARGEST, _SELECTED = 10, 64  # largest rows and columns, and selected columns, that a coarser grid does not pool


@dataclass(frozen=True)
class SurfaceGrid:
    """R rows of tokens, C columns of dims.

    value, token, dim   (R, C): the x with the largest `abs(x)` of each cell, and where it is
    tokens, dims        (R, 2), (C, 2): first and last of each row and column
    excluded            bool (R,): the row has first or special tokens
    selected            bool (C,): of one selected dim
    texts               by position, where they are known
    """

    value: Array
    token: Array
    dim: Array
    tokens: Array
    dims: Array
    excluded: Array
    selected: Array
    texts: dict[int, str]

    @classmethod
    def of(cls, surface: pl.DataFrame, population: str) -> "SurfaceGrid":
        """The rows of a population; there may be none."""
        if population == "without_first":
            surface = surface.filter(~pl.col("excluded"))
        surface = surface.sort("token_first", "excluded", "dim_first")
        columns = surface.select("dim_first", "dim_last", "selected").unique(maintain_order=True)
        shape = (-1, max(len(columns), 1))
        lines = surface.select("token_first", "token_last", "excluded", "token_text").gather_every(shape[1])

        def cells(name: str) -> Array:
            return surface[name].to_numpy().reshape(shape)

        return cls(
            value=cells("value").astype(np.float64),
            token=cells("token").astype(np.int64),
            dim=cells("dim").astype(np.int64),
            tokens=lines.select("token_first", "token_last").to_numpy().astype(np.int64),
            dims=columns.select("dim_first", "dim_last").to_numpy().astype(np.int64),
            excluded=lines["excluded"].to_numpy().astype(bool),
            selected=columns["selected"].to_numpy().astype(bool),
            texts=dict(lines.drop_nulls("token_text").select("token_first", "token_text").iter_rows()),
        )

    @property
    def size(self) -> Array:
        return np.abs(self.value)

    @property
    def by_token(self) -> Array:
        """The largest `abs(x)` of each row."""
        return self.size.max(axis=1)

    @property
    def by_dim(self) -> Array:
        """The largest `abs(x)` of each column."""
        return self.size.max(axis=0)

    def coarser(self, rows: int, columns: int) -> "SurfaceGrid":
        """Neighbours pooled by the largest `abs(x)`.

        Selected dims (the 64 largest) stay alone, and so do the 10 largest dims, excluded tokens and other tokens.
        """
        if not self.value.size:
            return self
        own = np.zeros(len(self.tokens), bool)
        for part in (self.excluded, ~self.excluded):
            own[largest_indices(np.where(part, self.by_token, -np.inf), _LARGEST)] = True
        own_dims = np.zeros(len(self.dims), bool)
        own_dims[largest_indices(self.by_dim, _LARGEST)] = True
        own_dims[largest_indices(np.where(self.selected, self.by_dim, -np.inf), _SELECTED)] = True
        lines, stripes = pooled_ranges(own, rows), pooled_ranges(own_dims, columns)
        place = np.array(
            [[self._largest_in(line, stripe) for stripe in stripes] for line in lines], dtype=np.int64
        )  # (rows, columns, 2)
        at = (place[..., 0], place[..., 1])
        return SurfaceGrid(
            value=self.value[at],
            token=self.token[at],
            dim=self.dim[at],
            tokens=np.stack([self.tokens[lines[:, 0], 0], self.tokens[lines[:, 1], 1]], axis=1),
            dims=np.stack([self.dims[stripes[:, 0], 0], self.dims[stripes[:, 1], 1]], axis=1),
            excluded=np.logical_or.reduceat(self.excluded, lines[:, 0]),
            selected=self.selected[stripes[:, 0]] & (stripes[:, 0] == stripes[:, 1]),
            texts=self.texts,
        )

    def _largest_in(self, line: Array, stripe: Array) -> tuple[int, int]:
        block = self.size[line[0] : line[1] + 1, stripe[0] : stripe[1] + 1]
        row, column = divmod(int(block.argmax()), block.shape[1])
        return int(line[0]) + row, int(stripe[0]) + column
