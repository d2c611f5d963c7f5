"""The largest value of each dim, site or token in a table; of equal ones the same everywhere."""

import polars as pl

_FIRST_BY = ("sequence", "layer", "token", "dim")


def largest_of_each(rows: pl.DataFrame, value: str, *by: str) -> pl.DataFrame:
    """Of each `by` the row with the largest abs(`value`), the largest first; `value` has no nulls.

    Of equal ones, of one `by` and of several, the first has the lowest sequence, then layer, token and dim, as far as
    the table has these columns, and then comes first in the table.
    """
    ties = [name for name in _FIRST_BY if name in rows.columns]
    descending = [True, *[False] * len(ties)]
    ordered = rows.sort(pl.col(value).abs(), *ties, descending=descending, maintain_order=True)
    return ordered.unique(by, keep="first", maintain_order=True)
