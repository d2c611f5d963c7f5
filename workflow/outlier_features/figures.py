"""The figures of a run's report, each a function of the public tables."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from outlier_features.figure_ablation import ablation
from outlier_features.figure_dimension_map import dimension_map
from outlier_features.figure_magnitude import magnitude_by_layer
from outlier_features.figure_rules import rules_side_by_side
from outlier_features.figure_sensitivity import sensitivity
from outlier_features.figure_shares import shares
from outlier_features.figure_style import Drawing
from outlier_features.findings import RULE_SITES, applied_sites

__all__ = [
    "ablation",
    "dimension_map",
    "magnitude_by_layer",
    "rules_side_by_side",
    "run_figures",
    "sensitivity",
    "shares",
]


def run_figures(tables: Mapping[str, pl.DataFrame], summary: Mapping[str, Any]) -> list[Drawing]:
    """The figures in the order of the report."""
    criteria = summary["rules"]["dettmers"]
    sites = {rule: applied_sites(summary, rule) for rule in RULE_SITES}
    return [
        magnitude_by_layer(tables["layers"], summary["sites"]["absent"]),
        dimension_map(tables["emergence"], tables["dims"], sites),
        rules_side_by_side(tables["dims"], sites, summary["model"]["blocks"]),
        shares(tables["dims"], sites, criteria),
        sensitivity(tables["sensitivity"], criteria),
        ablation(summary["ablation"]),
    ]
