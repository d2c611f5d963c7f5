"""The figures of a run's report, each a function of the public tables."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

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
from outlier_features.figures.quantization_loss import quantization_loss_figures
from outlier_features.figures.quantization_map import quantization_map
from outlier_features.figures.quantization_remedies import quantization_remedies
from outlier_features.figures.rules_side_by_side import rules_side_by_side
from outlier_features.figures.sensitivity import sensitivity
from outlier_features.figures.shares import shares
from outlier_features.figures.signs import signs
from outlier_features.figures.style import Drawing
from outlier_features.figures.surface import surface_figures
from outlier_features.figures.weight_outliers import weight_outliers
from outlier_features.files.missing import missing_sentence
from outlier_features.model.bases import RESIDUAL
from outlier_features.rules.kinds import listing_rules, of_kind
from outlier_features.rules.super_expert import SuperExpert
from outlier_features.rules.systematic import Systematic
from outlier_features.summary.first_words import lead
from outlier_features.summary.hybrid import attention_of_hybrid
from outlier_features.summary.quantization_facts import first_scheme
from outlier_features.summary.report_run import Run
from outlier_features.summary.run_rules import applied_sites, main_rules, rule_of, run_rules

Figures = dict[str, Callable[[], Drawing]]
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
    "quantization_losses": ("quantization-loss", "What rounding costs the whole model"),
    "quantization": ("quantization-map", "What rounding costs each linear layer"),
}


def run_figures(run: Run) -> list[Drawing]:
    """The figures, chapter by chapter, in the order of the report."""
    return [draw() for draw in figures_by_name(run).values()]


def figures_by_name(run: Run) -> Figures:
    """What draws each of the figures, in the order of the report.

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
    chapters: dict[str, Figures] = {
        OVERVIEW: {"first-screen": lambda: first_screen(tables, first, sites[first.rule.name] if first else [])},
        WHERE: {
            "magnitude-by-layer": lambda: magnitude_by_layer(tables["layers"], summary["sites"]["absent"], populations),
            "dimension-map": lambda: dimension_map(tables["emergence"], tables["dims"], main, populations),
            **_optional(run, "surface"),
            "massive-tokens": lambda: massive_tokens(tables["massive"], listing, populations),
            "positions": lambda: positions(tables["positions"], {name: rules[name] for name in followed}, populations),
            "distribution": lambda: distribution(tables["distribution"], blocks, site_thresholds(summary), populations),
            "kurtosis": lambda: kurtosis(tables["layers"], blocks, populations),
        },
        WHY: _optional(run, "origin") | _optional(run, "norms") | _optional(run, "experts"),
        ATTENTION: _optional(run, "attention_maps"),
        EFFECT: _optional(run, "ablation") | _optional(run, "expert_ablation") | _optional(run, "knock_outs"),
        QUANTIZED: _optional(run, "quantization_losses") | _optional(run, "quantization"),
        CRITERIA: {
            "rules": lambda: rules_side_by_side(tables["dims"], of_residual, blocks, populations),
            "signs": lambda: signs(tables["dims"], tables["emergence"], followed, populations),
            "shares": lambda: shares(tables["dims"], sites, closely, populations),
            "sensitivity": lambda: sensitivity(tables["sensitivity"], systematic, populations),
        },
    }
    if locations := run.locations:
        chapters[CRITERIA]["locations"] = lambda: locations_by_layer(locations)
    attention = attention_of_hybrid(summary["model"])

    def finished(draw: Callable[[], Drawing], chapter: str) -> Drawing:
        drawing = replace(draw(), chapter=chapter)
        return with_attention_marked(drawing, attention) if attention else drawing

    return {name: partial(finished, draw, chapter) for chapter, some in chapters.items() for name, draw in some.items()}


def _optional(run: Run, analysis: str) -> Figures:
    """The figures of an analysis that a run can do without."""
    tables, summary, populations = run.tables, run.summary, run.populations
    rules, blocks = listing_rules(summary["rules"]), summary["model"]["blocks"]
    if analysis in summary["missing"]:
        name, title = PLACES[analysis]
        why = missing_sentence(analysis, summary["missing"][analysis])
        return {name: lambda: Drawing(name, title, "none", "none", "none", f"Nothing is drawn. {why}")}
    if analysis == "surface" and "surface" in tables:
        return _together(("surface", "surface-map"), lambda: surface_figures(tables["surface"], populations))
    if analysis == "norms" and "norms" in tables:
        of_norms = (tables["norms"], tables["gains"], tables["dims"])
        return {"norm-gains": lambda: norm_gains(*of_norms, main_rules(summary), summary["norms"], populations)}
    if analysis == "origin" and "lifecycle" in tables:
        return {
            "lifecycle": lambda: lifecycle(tables["lifecycle"], rules),
            "origin-shares": lambda: origin_shares(tables["origin_shares"], rules),
            "origin": lambda: origin(tables["origin"], tables["origin_neurons"], rules),
        }
    if analysis == "experts" and summary["experts"]:
        experts, rule = tables["experts"], rule_of(summary["rules"], SuperExpert)
        return _together(
            () if experts.is_empty() else ("experts", "routing"),
            lambda: expert_figures(experts, tables["routing"], blocks, rule, rules),
        ) | {"expert-load": lambda: expert_load(tables["expert_load"], tables["expert_balance"], blocks, populations)}
    if analysis == "attention_maps" and (maps := run.maps):
        sample = SinkSample.of(maps.provenance)
        of_sinks = (tables["sinks"], tables["emergence"], tables["dims"])
        return {
            "attention-sinks": lambda: attention_sinks(*of_sinks, rules, sample),
            "attention-maps": lambda: attention_maps(maps, tables["sinks"], run.mapped_tokens),
        }
    if analysis == "ablation" and "ablation" in tables:
        return {"ablation": lambda: ablation(summary["ablation"])}
    if analysis == "expert_ablation" and "expert_ablation" in tables and summary["expert_ablation"]["effects"]:
        return {"expert-ablation": lambda: expert_ablation(summary["expert_ablation"])}
    if analysis == "knock_outs" and "knock_outs" in tables:
        of_knock_outs = (tables["knock_outs"], tables["knock_out_dims"], summary["knock_outs"])
        names = ("knock-outs", "head-map", "super-weight-scale")
        return _together(names, lambda: knock_out_figures(*of_knock_outs, rules))
    if analysis == "quantization_losses" and "quantization_loss" in tables:
        of_losses = (tables["quantization_loss"], tables["quantization_signals"], summary["quantization_losses"])
        names = ("quantization-loss", "quantization-kept", "quantization-signals")
        return _together(names, lambda: quantization_loss_figures(*of_losses))
    if analysis == "quantization" and "quantization" in tables:
        rounded, scheme = tables["quantization"], first_scheme(summary["quantization"])
        figures: Figures = {
            "quantization-map": lambda: quantization_map(rounded, scheme, populations),
            "quantization-remedies": lambda: quantization_remedies(rounded, scheme, populations),
        }
        if "weight_outliers" in tables:
            figures["weight-outliers"] = lambda: weight_outliers(tables["weight_outliers"])
        return figures
    return {}


def _together(names: Sequence[str], draw: Callable[[], Sequence[Drawing]]) -> Figures:
    """Figures of one function, which is called once for all of them."""
    once = cache(draw)
    return {name: partial(lambda at: once()[at], at) for at, name in enumerate(names)}
