"""The two parts of a sequence's positions, and the populations made of them.

Part 0, *excluded*: the first position of a sequence and special tokens. Part 1, *rest*. Padding is in neither. What
adds up is stored per part; tables speak of populations: `all` (both parts) and `without_first` (rest).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from outlier_features.wording import listing

EXCLUDED, REST, PADDING = 0, 1, 2
POPULATIONS = {"all": (EXCLUDED, REST), "without_first": (REST,)}
_TITLES = {
    "all": "all tokens",
    "without_first": "without first tokens",
    "without_high_norm": "without tokens of a large norm",  # of neurons
}


def position_parts(
    special: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], exclude_first: bool = True
) -> np.ndarray[Any, Any]:
    """The part of every position, uint8 (N, T), from the boolean arrays `special` and `mask` (N, T).

    The first position is the first that is not padding; only in a dump is it one like others.
    """
    special, mask = np.asarray(special, bool), np.asarray(mask, bool)
    first = np.zeros_like(mask)
    has_any = mask.any(axis=1) & exclude_first
    first[np.flatnonzero(has_any), mask.argmax(axis=1)[has_any]] = True
    return np.where(~mask, PADDING, np.where(special | first, EXCLUDED, REST)).astype(np.uint8)


def populations_of(parts: np.ndarray[Any, Any]) -> list[str]:
    """The populations that a run has: where no position is excluded, both would be the same."""
    return list(POPULATIONS) if (parts == EXCLUDED).any() else ["all"]


def population_title(population: str) -> str:
    """A population as readers know it: `all tokens`."""
    return _TITLES.get(population, f"population {population}")


def population_titles(populations: Iterable[str]) -> str:
    """Several of them: `all tokens and without first tokens`."""
    return listing(map(population_title, populations))


def over_population(population: str) -> str:
    """Of whose tokens a sentence is: `over all tokens`, `without first tokens`."""
    title = population_title(population)
    return title if title.startswith("without ") else f"over {title}"


def population_sizes(parts: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Positions of each population of the run in each sequence, int64 (N,), from `position_parts` (N, T)."""
    return {name: np.isin(parts, POPULATIONS[name]).sum(axis=1) for name in populations_of(parts)}
