"""How many dims and pairs a rule selects in a run, and their shares, with intervals over sequences."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from outlier_features.resampling import Array, Counts, Resampling, quotient, weighted_sums
from outlier_features.rules.rule import HitRule
from outlier_features.rules.systematic import Systematic

Row = dict[str, Any]
SHARES = ("layer_share", "position_share")


def rule_numbers(pairs: pl.DataFrame, rule: HitRule, draws: Resampling) -> Row:
    """The columns of the table `models` that its pairs with a hit say of a rule.

    pairs   of the rule in one population, as in the table `pairs`
    """
    readings = (rule.layer_reading, rule.position_reading) if isinstance(rule, Systematic) else ("blocks", "union")
    found: Row = dict(zip(("layer_reading", "position_reading"), readings, strict=True))
    found |= _counted("pairs", pairs.filter("passes"), draws)
    found |= _of_dims(pairs, readings, draws)
    found |= _magnitude(pairs, draws)
    if isinstance(rule, Systematic):
        layers, positions = pl.col("sites_share") >= rule.layer_share, pl.col("union") >= rule.position_share
        passing = pairs.filter(layers & positions)
        found |= _counted("sweep_pairs", passing, draws)
        for share, reading in zip(SHARES, ("sites_share", "union"), strict=True):
            found |= _of_pairs(f"sweep_{share}", passing, reading, draws)
    return found


def _counted(name: str, passing: pl.DataFrame, draws: Resampling) -> Row:
    found = draws.sums(_per_sequence(passing, np.ones(len(passing)), draws))
    return _row(name, len(passing), draws, found)


def _of_pairs(name: str, passing: pl.DataFrame, reading: str, draws: Resampling) -> Row:
    """Mean and median of a share over pairs."""
    if passing.is_empty():
        return {}
    values, sequence = passing[reading].to_numpy(), passing["sequence"].to_numpy()
    sums = _per_sequence(passing, values, draws)
    means = draws.ratios(sums, _per_sequence(passing, np.ones(len(values)), draws))
    return {
        **_row(f"{name}_mean", float(sums.sum() / len(values)), draws, means),
        **_row(f"{name}_median", float(np.median(values)), draws, draws.medians(values, sequence)),
    }


def _of_dims(pairs: pl.DataFrame, readings: tuple[str, str], draws: Resampling) -> Row:
    """How many dims pass in at least one sequence, and mean and median over them of their shares, each the mean over
    the sequences in which the dim has a hit."""
    selected = pairs.filter(pl.col("passes").any().over("dim"))
    place = _places(selected, draws)
    hit, passes, *shares = (place(values) for values in (
        np.ones(len(selected)), selected["passes"].to_numpy(), *(selected[reading].to_numpy() for reading in readings)
    ))  # fmt: skip

    def numbers(times: Counts) -> list[Array]:
        passing = weighted_sums(times, passes) > 0
        found: list[Array] = [passing.sum(axis=1).astype(np.float64)]
        for share in shares:
            means = quotient(weighted_sums(times, share), weighted_sums(times, hit))
            of_passing = [row[those] for row, those in zip(means, passing, strict=True)]
            found += [_each(np.mean, of_passing), _each(np.median, of_passing)]
        return found

    own = numbers(np.ones((1, draws.times.shape[1]), np.int64))
    drawn = [np.concatenate(parts) for parts in zip(*map(numbers, draws.portions()), strict=True)]
    names = ["dims", *(f"{share}_{how}" for share in SHARES for how in ("mean", "median"))]
    found: Row = {}
    for name, (value,), values in zip(names, own, drawn, strict=True):
        known = None if np.isnan(value) else int(value) if name == "dims" else float(value)
        found |= _row(name, known, draws, values)
    return found


def _magnitude(pairs: pl.DataFrame, draws: Resampling) -> Row:
    """Of the selected dim with the most hits, the median over its passing sequences of its largest abs(x)."""
    selected = pairs.filter(pl.col("passes").any().over("dim"))
    if selected.is_empty():
        return {}
    hits = selected.group_by("dim").agg(pl.col("occurrences").sum())
    dim = hits.sort(["occurrences", "dim"], descending=[True, False])["dim"][0]
    passing = pairs.filter(pl.col("passes"), dim=dim)
    values, sequence = passing["max_abs"].to_numpy(), passing["sequence"].to_numpy()
    return _row("magnitude_median", float(np.median(values)), draws, draws.medians(values, sequence))


def _per_sequence(pairs: pl.DataFrame, values: Array, draws: Resampling) -> Array:
    sums = np.bincount(pairs["sequence"].to_numpy(), weights=values, minlength=draws.times.shape[1])
    return sums.astype(np.float64)  # of no pair they are integers


def _places(pairs: pl.DataFrame, draws: Resampling) -> Callable[[NDArray[Any]], Array]:
    """A function that lays values of pairs out as (sequences, dims), 0 where there is no pair."""
    dims, column = np.unique(pairs["dim"].to_numpy(), return_inverse=True)
    row = pairs["sequence"].to_numpy()

    def place(values: NDArray[Any]) -> Array:
        laid = np.zeros((draws.times.shape[1], len(dims)))
        laid[row, column] = values
        return laid

    return place


def _each(statistic: Callable[[Array], Any], rows: list[Array]) -> Array:
    return np.array([statistic(row) if len(row) else np.nan for row in rows])


def _row(name: str, value: float | None, draws: Resampling, values: Array) -> Row:
    low, high = draws.interval(values)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
