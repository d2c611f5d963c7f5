"""The figures of a run's report, each a function of the public tables."""

from collections.abc import Iterator
from dataclasses import replace

from outlier_features.attention.sinks_schema import SinkSample
from outlier_features.figures.ablation import ablation, expert_ablation
from outlier_features.figures.attention_maps import attention_maps
from outlier_features.figures.attention_sinks import attention_sinks
from outlier_features.figures.dimension_map import dimension_map
from outlier_features.figures.distribution import distribution, site_thresholds
from outlier_features.figures.expert_load import expert_load
from outlier_features.figures.experts import expert_figures
from outlier_features.figures.first_screen import first_screen
from outlier_features.figures.hybrid import with_attention_marked
from outlier_features.figures.knock_outs import knock_out_figures
from outlier_features.figures.kurtosis import kurtosis
from outlier_features.figures.lifecycle import lifecycle
from outlier_features.figures.locations import locations_by_layer
from outlier_features.figures.magnitude import magnitude_by_layer
from outlier_features.figures.massive_tokens import massive_tokens
from outlier_features.figures.norm_gains import norm_gains
from outlier_features.figures.origin import origin
from outlier_features.figures.origin_shares import origin_shares
from outlier_features.figures.positions import positions
from outlier_features.figures.rules_side_by_side import rules_side_by_side
from outlier_features.figures.sensitivity import sensitivity
from outlier_features.figures.shares import shares
from outlier_features.figures.signs import signs
from outlier_features.figures.style import Drawing
from outlier_features.figures.surface import surface_figures
from outlier_features.files.missing import missing_sentence
from outlier_features.model.bases import RESIDUAL
from outlier_features.rules.kinds import listing_rules, of_kind
from outlier_features.rules.super_expert import SuperExpert
from outlier_features.rules.systematic import Systematic
from outlier_features.summary.first_words import lead
from outlier_features.summary.hybrid import attention_of_hybrid
from outlier_features.summary.report_run import Run
from outlier_features.summary.run_rules import applied_sites, main_rules, rule_of, run_rules

# The report's chapters that have figures, in their order, with their titles; a run's page begins with the first.
OVERVIEW, WHERE, WHY, ATTENTION, EFFECT, QUANTIZED, CRITERIA = CHAPTERS = {
    "overview": "Overview",
    "where": "Where",
    "why": "Why",
    "attention": "Attention",
    "effect": "Does it matter?",
    "quantization": "Quantization",
    "criteria": "Rules and sensitivity",
}
# By analysis, the name and title of the figure that says why there is none.
PLACES = {
    "surface": ("surface", "Surface of the largest value"),
    "norms": ("norm-gains", "Gains of the norms"),
    "origin": ("lifecycle", "What makes a massive activation, and what removes it"),
    "experts": ("experts", "What each expert writes"),
    "attention_maps": ("attention-sinks", "Attention sinks and massive activations"),
    "ablation": ("ablation", "Does it matter?"),
    "expert_ablation": ("expert-ablation", "Without the super experts"),
    "knock_outs": ("knock-outs", "Without a sublayer"),
}


def run_figures(run: Run) -> list[Drawing]:
    """The figures, chapter by chapter, in the order of the report.

    Those whose tables the run lacks are left out; in the place of those of a missing analysis stands the reason.
    """
    tables, summary, populations = run.tables, run.summary, run.populations
    rules, blocks = run_rules(summary), summary["model"]["blocks"]
    sites = {name: applied_sites(summary, name) for name in rules}
    followed = {name: sites[name] for name, rule in rules.items() if rule.follow_up}
    main = {name: sites[name] for name in main_rules(summary)}
    of_residual = {name: sites[name] for name, rule in rules.items() if rule.basis == RESIDUAL}
    listing = {name: sites[name] for name in main if rules[name].lists_hits}
    systematic = of_kind(rules, Systematic)
    closely = {name: rule for name, rule in systematic.items() if rule.follow_up}
    first = lead(summary)
    chapters = {
        OVERVIEW: [first_screen(tables, first, sites[first.rule.name] if first else [])],
        WHERE: [
            magnitude_by_layer(tables["layers"], summary["sites"]["absent"], populations),
            dimension_map(tables["emergence"], tables["dims"], main, populations),
            *_optional(run, "surface"),
            massive_tokens(tables["massive"], listing, populations),
            positions(tables["positions"], {name: rules[name] for name in followed}, populations),
            distribution(tables["distribution"], blocks, site_thresholds(summary), populations),
            kurtosis(tables["layers"], blocks, populations),
        ],
        WHY: [drawing for analysis in ("origin", "norms", "experts") for drawing in _optional(run, analysis)],
        ATTENTION: [*_optional(run, "attention_maps")],
        EFFECT: [
            drawing
            for analysis in ("ablation", "expert_ablation", "knock_outs")
            for drawing in _optional(run, analysis)
        ],
        CRITERIA: [
            rules_side_by_side(tables["dims"], of_residual, blocks, populations),
            signs(tables["dims"], tables["emergence"], followed, populations),
            shares(tables["dims"], sites, closely, populations),
            sensitivity(tables["sensitivity"], systematic, populations),
            *([locations_by_layer(run.locations)] if run.locations else []),
        ],
    }
    drawings = [replace(drawing, chapter=chapter) for chapter, some in chapters.items() for drawing in some]
    attention = attention_of_hybrid(summary["model"])
    return [with_attention_marked(drawing, attention) for drawing in drawings] if attention else drawings


def _optional(run: Run, analysis: str) -> Iterator[Drawing]:
    """The figures of an analysis that a run can do without."""
    tables, summary = run.tables, run.summary
    listing = listing_rules(summary["rules"])
    if analysis in summary["missing"]:
        name, title = PLACES[analysis]
        why = missing_sentence(analysis, summary["missing"][analysis])
        yield Drawing(name, title, "none", "none", "none", f"Nothing is drawn. {why}")
    elif analysis == "surface" and "surface" in tables:
        yield from surface_figures(tables["surface"], run.populations)
    elif analysis == "norms" and "norms" in tables:
        yield norm_gains(
            tables["norms"], tables["gains"], tables["dims"], main_rules(summary), summary["norms"], run.populations
        )
    elif analysis == "origin" and "lifecycle" in tables:
        yield from (
            lifecycle(tables["lifecycle"], listing),
            origin_shares(tables["origin_shares"], listing),
            origin(tables["origin"], tables["origin_neurons"], listing),
        )
    elif analysis == "experts" and summary["experts"]:
        rule, blocks = rule_of(summary["rules"], SuperExpert), summary["model"]["blocks"]
        yield from expert_figures(tables["experts"], tables["routing"], blocks, rule, listing)
        yield expert_load(tables["expert_load"], tables["expert_balance"], blocks, run.populations)
    elif analysis == "attention_maps" and run.maps:
        yield attention_sinks(
            tables["sinks"], tables["emergence"], tables["dims"], listing, SinkSample.of(run.maps.provenance)
        )
        yield attention_maps(run.maps, tables["sinks"], run.mapped_tokens)
    elif analysis == "ablation" and "ablation" in tables:
        yield ablation(summary["ablation"])
    elif analysis == "expert_ablation" and "expert_ablation" in tables and summary["expert_ablation"]["effects"]:
        yield expert_ablation(summary["expert_ablation"])
    elif analysis == "knock_outs" and "knock_outs" in tables:
        yield from knock_out_figures(tables["knock_outs"], tables["knock_out_dims"], summary["knock_outs"], listing)
