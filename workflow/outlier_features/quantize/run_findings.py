"""What a run found that remedies are of: dims that its rules selected, massive tokens, super weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from outlier_features.model.bases import HEADS, NEURONS, RESIDUAL, basis_of
from outlier_features.model.sites import SITES
from outlier_features.quantize.remedies import RunFindings
from outlier_features.rules.kinds import followed

Array = np.ndarray[Any, Any]
# A rule that selects more of a basis than this marks no few dims that could be left exact.
MOST_SELECTED = 0.125


def run_findings(
    dims: pl.DataFrame,
    super_weights: pl.DataFrame,
    rules: Mapping[str, Any],
    widths: Mapping[str, int],
    seeds: int,
) -> RunFindings:
    """dims, super_weights   the run's tables
    rules    of its provenance
    widths   of the sites that linear layers read
    """
    selected = dims.filter(pl.col("selected"), population="all")
    by_basis: dict[str, tuple[set[int], list[str]]] = {}
    for basis in (RESIDUAL, HEADS, NEURONS):
        width = next((width for site, width in widths.items() if basis_of(site) == basis), 0)
        for rule in followed(rules, basis):
            own = selected.filter(rule=rule)["dim"].to_list()
            if own and len(own) <= MOST_SELECTED * width:
                found = by_basis.setdefault(basis, (set(), []))
                found[0].update(own)
                found[1].append(rule)
    weights: dict[str, list[tuple[int, int]]] = {}
    for module, row, col in super_weights.select("module", "row", "col").rows():
        weights.setdefault(module, []).append((row, col))
    return RunFindings(
        {
            site: (sorted(by_basis[basis_of(site)][0]), ", ".join(by_basis[basis_of(site)][1]))
            for site in SITES
            if basis_of(site) in by_basis
        },
        weights,
        seeds,
    )


def massive_places(massive: pl.DataFrame, shape: tuple[int, ...]) -> Array:
    """Where the run found massive activations, in any layer and dim: bool (N, T)."""
    places = np.zeros(shape, bool)
    found = massive.filter(pl.col("massive_all")).select("sequence", "token").unique()
    places[found["sequence"].to_numpy(), found["token"].to_numpy()] = True
    return places
