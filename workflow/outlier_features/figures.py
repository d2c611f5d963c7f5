"""The figures of a run's report, each a function of the public tables."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from outlier_features.figure_dimension_map import dimension_map
from outlier_features.figure_locations import locations_by_layer
from outlier_features.figure_magnitude import magnitude_by_layer
from outlier_features.figure_norm_gains import norm_gains
from outlier_features.figure_rules import rules_side_by_side
from outlier_features.figure_sensitivity import sensitivity
from outlier_features.figure_shares import shares
from outlier_features.figure_style import Drawing
from outlier_features.findings import RULE_SITES, applied_sites

__all__ = [
    "dimension_map", "magnitude_by_layer", "norm_gains", "rules_side_by_side", "run_figures", "sensitivity", "shares",
]  # fmt: skip


def run_figures(
    tables: Mapping[str, pl.DataFrame], summary: Mapping[str, Any], locations: Mapping[str, Any] | None
) -> list[Drawing]:
    """The figures in the order of the report."""
    criteria = summary["rules"]["dettmers"]
    populations = list(summary["populations"])
    sites = {rule: applied_sites(summary, rule) for rule in RULE_SITES}
    drawings = [
        magnitude_by_layer(tables["layers"], summary["sites"]["absent"], populations),
        dimension_map(tables["emergence"], tables["dims"], sites, populations),
    ]
    if "norms" in tables:
        drawings.append(norm_gains(tables["norms"], tables["gains"], tables["dims"], summary["norms"], populations))
    drawings += [
        rules_side_by_side(tables["dims"], sites, summary["model"]["blocks"], populations),
        shares(tables["dims"], sites, criteria, populations),
        sensitivity(tables["sensitivity"], criteria, populations),
    ]
    if locations:
        drawings.append(locations_by_layer(locations, populations[0]))
    return drawings
