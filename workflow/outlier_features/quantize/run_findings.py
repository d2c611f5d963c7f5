"""What a run found that remedies are of: dims that its rules selected, massive tokens, super weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from outlier_features.model.bases import HEADS, NEURONS, RESIDUAL, SITES, basis_of
from outlier_features.populations import EXCLUDED, PADDING
from outlier_features.quantize.remedies import RunFindings
from outlier_features.rules.kinds import followed
from outlier_features.tokens.tokens import Tokens
from outlier_features.wording import count

Array = np.ndarray[Any, Any]
# What is more than this of a basis, or of the tokens, is no few dims or tokens that could be left exact.
MOST_EXACT = 0.125


def run_findings(
    dims: pl.DataFrame,
    super_weights: pl.DataFrame,
    rules: Mapping[str, Any],
    widths: Mapping[str, int],
    seeds: int,
    tokens: str,
) -> RunFindings:
    """dims, super_weights   the run's tables
    rules    of its provenance
    widths   of the sites that linear layers read
    tokens   see `exact_tokens`
    """
    selected = dims.filter(pl.col("selected"), population="all")
    by_basis: dict[str, tuple[set[int], list[str]]] = {}
    for basis in (RESIDUAL, HEADS, NEURONS):
        width = next((width for site, width in widths.items() if basis_of(site) == basis), 0)
        for rule in followed(rules, basis):
            own = selected.filter(rule=rule)["dim"].to_list()
            if own and len(own) <= MOST_EXACT * width:
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
        tokens,
    )


def exact_tokens(run: Tokens, massive: pl.DataFrame) -> tuple[Array, str]:
    """The tokens that `exact_positions` leaves exact, bool (N, T), and which these are, in words.

    First positions and special tokens, and where the run found massive activations, in any layer and dim, if such
    tokens are few: in some models most are (Gemma 3), and to leave these exact is no remedy.
    """
    first, there = run.parts == EXCLUDED, run.parts != PADDING
    places = np.zeros_like(first)
    found = massive.filter(pl.col("massive_all")).select("sequence", "token").unique()
    places[found["sequence"].to_numpy(), found["token"].to_numpy()] = True
    few = places.sum() <= MOST_EXACT * there.sum()
    exact = first | places if few else first
    which = "first, special and massive" if few else "first and special"
    beside = "" if few else f"; massive are {places.sum():,}"
    return exact, f"{which}: {exact.sum():,} of {count(int(there.sum()), 'token')}{beside}"
