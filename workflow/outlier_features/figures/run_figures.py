"""The figures of a run's report, each a function of the public tables."""

from collections.abc import Iterator

from outlier_features.figures.ablation import ablation
from outlier_features.figures.attention_maps import attention_maps
from outlier_features.figures.attention_sinks import attention_sinks
from outlier_features.figures.dimension_map import dimension_map
from outlier_features.figures.distribution import distribution, site_thresholds
from outlier_features.figures.experts import expert_figures
from outlier_features.figures.kurtosis import kurtosis
from outlier_features.figures.lifecycle import lifecycle
from outlier_features.figures.locations import locations_by_layer
from outlier_features.figures.magnitude import magnitude_by_layer
from outlier_features.figures.massive_tokens import massive_tokens
from outlier_features.figures.norm_gains import norm_gains
from outlier_features.figures.origin import origin
from outlier_features.figures.positions import positions
from outlier_features.figures.rules_side_by_side import rules_side_by_side
from outlier_features.figures.sensitivity import sensitivity
from outlier_features.figures.shares import shares
from outlier_features.figures.signs import signs
from outlier_features.figures.style import Drawing
from outlier_features.figures.surface import surface_figures
from outlier_features.files.missing import missing_sentence
from outlier_features.summary.findings import RULE_SITES, applied_sites
from outlier_features.summary.report_run import Run

# By analysis, the name and title of the figure that says why there is none.
PLACES = {
    "surface": ("surface", "Surface of the largest value"),
    "norms": ("norm-gains", "Gains of the norms"),
    "origin": ("lifecycle", "What makes a massive activation, and what removes it"),
    "experts": ("experts", "What each expert writes"),
    "attention_maps": ("attention-sinks", "Attention sinks and massive activations"),
    "ablation": ("ablation", "Does it matter?"),
}


def run_figures(run: Run) -> list[Drawing]:
    """The figures in the order of the report.

    Those whose tables the run lacks are left out; in the place of those of a missing analysis stands the reason.
    """
    tables, summary, populations = run.tables, run.summary, run.populations
    criteria, blocks = summary["rules"]["dettmers"], summary["model"]["blocks"]
    sites = {rule: applied_sites(summary, rule) for rule in RULE_SITES}
    drawings = [
        magnitude_by_layer(tables["layers"], summary["sites"]["absent"], populations),
        *_optional(run, "surface"),
        massive_tokens(tables["massive"], populations, applied=bool(sites["massive"])),
        dimension_map(tables["emergence"], tables["dims"], sites, populations),
        rules_side_by_side(tables["dims"], sites, blocks, populations),
        signs(tables["dims"], tables["emergence"], sites, populations),
        positions(tables["positions"], summary["rules"]["massive"], populations),
        distribution(tables["distribution"], blocks, site_thresholds(summary), populations),
        kurtosis(tables["layers"], blocks, populations),
        shares(tables["dims"], sites, criteria, populations),
        sensitivity(tables["sensitivity"], criteria, populations),
    ]
    if run.locations:
        drawings.append(locations_by_layer(run.locations))
    for analysis in ("norms", "origin", "experts", "attention_maps", "ablation"):
        drawings += _optional(run, analysis)
    return drawings


def _optional(run: Run, analysis: str) -> Iterator[Drawing]:
    """The figures of an analysis that a run can do without."""
    tables, summary = run.tables, run.summary
    if analysis in summary["missing"]:
        name, title = PLACES[analysis]
        why = missing_sentence(analysis, summary["missing"][analysis])
        yield Drawing(name, title, "none", "none", "none", f"Nothing is drawn. {why}")
    elif analysis == "surface":
        yield from surface_figures(tables["surface"], run.populations)
    elif analysis == "norms" and "norms" in tables:
        yield norm_gains(tables["norms"], tables["gains"], tables["dims"], summary["norms"], run.populations)
    elif analysis == "origin" and "lifecycle" in tables:
        yield from (lifecycle(tables["lifecycle"]), origin(tables["origin"], tables["origin_neurons"]))
    elif analysis == "experts" and "experts" in tables:
        yield from expert_figures(tables["experts"], tables["routing"], summary["model"]["blocks"])
    elif analysis == "attention_maps" and run.maps:
        yield attention_sinks(tables["sinks"], tables["emergence"], tables["dims"], run.maps.provenance)
        yield attention_maps(run.maps, tables["sinks"], run.mapped_tokens)
    elif analysis == "ablation" and "ablation" in tables:
        yield ablation(summary["ablation"])
