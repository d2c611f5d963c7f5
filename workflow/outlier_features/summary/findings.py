"""What a run found, in words: sentences computed from its summary.json alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from outlier_features.experts.summarize_experts import experts_in_words
from outlier_features.files.missing import missing_sentence
from outlier_features.model.bases import NO_OTHER_MIXER, RESIDUAL
from outlier_features.norms.gain_summary import NOTABLE, dim_sentence, is_notable, ones_sentence
from outlier_features.rules.rule import SCALES
from outlier_features.summary.findings_ablation import ablation_sentences, super_weight_sentences
from outlier_features.summary.meaning import meaning
from outlier_features.summary.run_rules import applied_sites, listed, main_rules, run_rules
from outlier_features.visible_text import quoted, visible
from outlier_features.wording import count, layers, listing, number, percent

Topic = Literal["found", "not found", "missing", "prediction", "effect", "meaning"]
Part = Mapping[str, Any]

DIMS_IN_FULL = 4
DIMS_BY_NUMBER = 8
_FIRST_OR_SPECIAL = "the first position of a sequence or a special token"


@dataclass(frozen=True)
class Finding:
    """A sentence or two that name site, rule and population of their numbers; `details` has one line a dimension."""

    topic: Topic
    text: str
    details: tuple[str, ...] = ()


def findings(summary: Part) -> list[Finding]:
    """What was found and what was not, what is missing, the model's loss, and what the numbers mean."""
    return [
        *(Finding("missing", visible(missing_sentence(*one))) for one in summary["missing"].items()),
        *(finding for population in summary["populations"] for finding in _of_population(summary, population)),
        *_located(summary),
        *(Finding(topic, text, details) for topic, text, details in experts_in_words(summary["experts"])),
        *_not_applied(summary),
        *_absent_sites(summary),
        *_dense_sites(summary),
        *_norm_gains(summary["norms"]),
        *([] if is_dump(summary) else _of_model(summary)),
        *(Finding("meaning", text) for text in meaning(summary)),
    ]


def _of_model(summary: Part) -> Iterator[Finding]:
    """What only a model that was run here can tell, as far as it is not missing."""
    for analysis, finding in (("super_weights", _super_weights), ("loss", _prediction), ("ablation", _effect)):
        if analysis not in summary["missing"]:
            yield finding(summary[analysis])


def is_dump(summary: Part) -> bool:
    """Whether the activations were saved by some other program, so that there is no model to speak of."""
    return bool(summary["model"]["kind"] == "dump")


def _of_population(summary: Part, population: str) -> Iterator[Finding]:
    found = summary["populations"][population]
    if not summary["corpus"]["positions"][population]:
        yield Finding("not found", f"Population {population} has no positions, so nothing is said about it.")
        return
    for rule, result in found["rules"].items():
        if result["dims_selected"]:
            yield _selected(summary, population, rule, result)
        else:
            yield Finding("not found", _none_selected(summary, population, rule, result))
    followed = main_rules(summary)
    for overlap in found["overlaps"]:
        if followed.keys() >= {*overlap["rules"]}:
            yield from _overlap(overlap, population)
    yield from _scales(summary, population)
    if found["largest"]:
        yield _largest(found["largest"], population)


def _largest(sites: list[Part], population: str) -> Finding:
    values = [
        f"{number(row['max'])} on {visible(row['site'])} in layer {row['layer']} "
        f"(median |x| there {number(row['median'])})"
        for row in sorted(sites, key=lambda row: -row["max"])
    ]
    return Finding(
        "found", f"Largest |x| of each site in population {population}, whatever the rule: {listing(values)}."
    )


def _selected(summary: Part, population: str, rule: str, result: Part) -> Finding:
    if run_rules(summary)[rule].lists_hits:
        text, details = _massive(summary, population, rule, result)
    else:
        text, details = _outliers(summary, population, rule, result)
    rest = [str(row["dim"]) for row in result["dims"][DIMS_IN_FULL:]]
    if rest:
        more = ", ".join(rest[:DIMS_BY_NUMBER]) + (" and others" if len(rest) > DIMS_BY_NUMBER else "")
        details.append(f"And {count(len(rest), 'more dimension')}: {more}.")
    return Finding("found", text, tuple(details))


def _outliers(summary: Part, population: str, rule: str, result: Part) -> tuple[str, list[str]]:
    hit = result["dims_with_hit"]
    text = (
        f"Rule {rule} on {_sites(summary, rule)} selects {_dims_of(summary, rule, result['dims_selected'])} in "
        f"population {population}{_majority(result)}. {count(hit, 'dimension')} with a hit "
        f"{'has' if hit == 1 else 'have'} {_counts(result)}."
    )
    return text, [_outlier(summary, row) for row in result["dims"][:DIMS_IN_FULL]]


def _outlier(summary: Part, row: Part) -> str:
    return (
        f"Dimension {row['dim']} (kind {row['kind']}) passes in {_of_sequences(summary, row)}. On average over the "
        f"{count(row['sequences'], 'sequence')} with a hit, it has hits in {percent(row['blocks_mean'])} of the layers "
        f"(within {_extent(row)}) and at {percent(row['union_mean'])} of the positions; max |x| is "
        f"{number(row['max_abs'])}.{_steps(row)}"
    )


def _extent(row: Part) -> str:
    return layers(range(row["first_layer"], row["last_layer"] + 1))


def _massive(summary: Part, population: str, rule: str, result: Part) -> tuple[str, list[str]]:
    found, noun = listed(summary, population, rule), run_rules(summary)[rule].noun
    text = (
        f"Rule {rule} on {_sites(summary, rule)} finds {count(found['activations'], noun)} in "
        f"population {population}, at {count(found['positions'], 'position')} and in {layers(found['layers'])}, in "
        f"{_dims_of(summary, rule, result['dims_selected'])}{_majority(result)}."
    )
    largest = {row["dim"]: row for row in found["dims"]}
    details = [_massive_dim(summary, population, row, largest[row["dim"]]) for row in result["dims"][:DIMS_IN_FULL]]
    return text + _where_excluded(found, population), details


def _where_excluded(found: Part, population: str) -> str:
    """In population `without_first` no position is excluded, so there is nothing to say."""
    if population != "all":
        return ""
    excluded, activations = found["at_excluded_positions"], found["activations"]
    if excluded == activations:
        subject = "It is" if activations == 1 else "All of them are"
    elif excluded:
        subject = f"{excluded:,} of them {_are(excluded)}"
    else:
        subject = "It is not" if activations == 1 else "None of them is"
    position = found["by_token"][0]["token"] if found["tokens"] == 1 else None
    return f" {subject} at {_FIRST_OR_SPECIAL}{'' if position is None else f' (position {position})'}."


def _massive_dim(summary: Part, population: str, row: Part, largest: Part) -> str:
    where = f"position {largest['token']} of sequence {largest['sequence']}"
    if largest["token_text"] is not None:
        token = f"the token {quoted(largest['token_text'])}" if largest["token_text"] else "a token without text"
        where = f"{token} ({where})"
    return (
        f"Dimension {row['dim']} (kind {row['kind']}) has them in {_of_sequences(summary, row)}, within "
        f"{_extent(row)}. The largest, x = {number(largest['value'])}, is at {where} in layer {largest['layer']}, "
        f"{number(largest['ratio'])} times the median |x| over the positions of population {population} there "
        f"({number(largest['median'])}).{_steps(row)}"
    )


def _steps(row: Part) -> str:
    if row["step_up"] is None:
        return ""
    down = "does not step down" if row["step_down"] is None else f"down in {row['step_down']}"
    return f" On resid_post it steps up in layer {row['step_up']} and {down}."


def _none_selected(summary: Part, population: str, rule: str, result: Part) -> str:
    sites, kind = _sites(summary, rule), run_rules(summary)[rule]
    if kind.lists_hits:
        return f"There is no {kind.noun} in population {population}: no value on {sites} meets rule {rule}."
    start = f"No dimension passes rule {rule} on {sites} in population {population}"
    threshold = f"{SCALES[kind.scale]} >= {number(kind.threshold)}"
    if not result["dims_with_hit"]:
        return f"{start}: no value there has {threshold}."
    verb = "has a value" if result["dims_with_hit"] == 1 else "have values"
    some = count(result["dims_with_hit"], "dimension")
    return f"{start}, though {some} {verb} of {threshold} there: {_counts(result)}."


def _scales(summary: Part, population: str) -> Iterator[Finding]:
    """How rules that divide by a scale and those with a fixed threshold differ, by the dims that they select."""
    rules = {name: rule for name, rule in run_rules(summary).items() if rule.basis == RESIDUAL and not rule.lists_hits}
    selected = {
        name: {row["dim"] for row in result["dims"]}
        for name, result in summary["populations"][population]["rules"].items()
        if name in rules
    }
    free = [name for name in selected if rules[name].scale]
    fixed = [name for name in selected if not rules[name].scale]
    if not free or not fixed:
        return
    by_free, by_fixed = (set[int]().union(*(selected[name] for name in names)) for names in (free, fixed))
    counts = [f"{len(selected[name]):,} by {name}" for name in (*fixed, *free)]
    yield Finding(
        "found",
        f"Dimensions selected in population {population} by a fixed threshold and by scale-free ones: {listing(counts)}"
        ". "
        f"{len(by_fixed & by_free):,} in common, {len(by_fixed - by_free):,} by the fixed threshold alone, "
        f"{len(by_free - by_fixed):,} by a scale-free one alone{_named(by_free - by_fixed)}.",
    )


def _named(dims: set[int]) -> str:
    return f" ({', '.join(map(str, sorted(dims)))})" if 0 < len(dims) <= DIMS_BY_NUMBER else ""


def _overlap(jaccard: Part, population: str) -> Iterator[Finding]:
    if jaccard["jaccard"] is None:
        return
    common, either = jaccard["common"], count(jaccard["union"], "dimension")
    where = (
        f"selected by both rules, {listing(jaccard['rules'])}, in population {population} (Jaccard index "
        f"{number(float(jaccard['jaccard']))}: {len(common)} of {either} selected by either)."
    )
    if not common:
        yield Finding("not found", f"No dimension is {where}")
        return
    rest = [f"{len(common) - DIMS_BY_NUMBER} more"] if len(common) > DIMS_BY_NUMBER else []
    names = listing([*common[:DIMS_BY_NUMBER], *rest])
    yield Finding("found", f"{'Dimension' if len(common) == 1 else 'Dimensions'} {names} {_are(len(common))} {where}")


def _are(items: int) -> str:
    return "is" if items == 1 else "are"


def _located(summary: Part) -> Iterator[Finding]:
    location = summary["location"]
    if location is None:
        return
    for population, sites in location["populations"].items():
        for site, found in sites.items():
            yield _location(location, population, site, found)


def _location(rule: Part, population: str, site: str, found: Part) -> Finding:
    sign = ">=" if rule["inclusive"] else ">"
    criteria = f"|x| {sign} {number(rule['threshold'])} in {percent(rule['layer_share'])} of the layers or more"
    where = f"Rule location ({criteria}) on {visible(site)} in population {population}"
    if not found["occurrences"]:
        return Finding("not found", f"{where} keeps no location.")
    text = (
        f"{where} keeps {count(found['occurrences'], 'occurrence')} at {count(found['locations'], 'location')} "
        f"({percent(found['location_rate'])} of all) in {count(found['dims'], 'dimension')}."
    )
    top = [
        f"Dimension {row['dim']} has {percent(row['share'])} of them, of which "
        f"{percent(row['positive'] / row['count'])} are positive."
        for row in found["top"]
    ]
    return Finding("found", text, tuple(top))


def _not_applied(summary: Part) -> Iterator[Finding]:
    for name, rule in run_rules(summary).items():
        if not applied_sites(summary, name):
            reasons = [f"{site} {_why_missing(summary, site, rule.scale)}" for site in rule.sites]
            yield Finding("not found", f"Rule {name} was not applied: {listing(reasons)}.")


def _why_missing(summary: Part, site: str, scale: str | None) -> str:
    unknown = summary["sites"].get("without_scale", {}).get(site, {}).get(scale)
    if unknown:
        return f"has no scale ({visible(unknown)})"
    reason = summary["sites"]["absent"].get(site)
    return f"is absent ({visible(reason)})" if reason else "was not recorded"


def _absent_sites(summary: Part) -> Iterator[Finding]:
    for site, reason in summary["sites"]["absent"].items():
        if reason == NO_OTHER_MIXER:
            continue
        if site in summary["sites"]["present"]:
            yield Finding("not found", f"Site {visible(site)} is absent from a part of the layers: {visible(reason)}.")
            continue
        used = [
            name for name, rule in run_rules(summary).items() if site in rule.sites and applied_sites(summary, name)
        ]
        effect = "".join(f" Rule {rule} was applied to {_sites(summary, rule)} alone." for rule in used)
        yield Finding("not found", f"Site {visible(site)} is absent from this model: {visible(reason)}.{effect}")


def _dense_sites(summary: Part) -> Iterator[Finding]:
    sequences = count(summary["corpus"]["sequences"], "sequence")
    sites = [
        f"{percent(found['share'])} of the values on {visible(site)} are at or above {number(found['floor'])} "
        f"(too many in {found['sequences']:,} of {sequences})"
        for site, found in summary["sites"]["dense"].items()
    ]
    if sites:
        yield Finding("found", f"{listing(sites)}; in these sequences hits are counted exactly but not listed.")


def _norm_gains(norms: Part | None) -> Iterator[Finding]:
    if norms is None or not norms["norms"]:
        return
    notable = [row for row in norms["dims"] if is_notable(row)]
    yield Finding("found", ones_sentence(norms), tuple(dim_sentence(row) for row in notable[:DIMS_IN_FULL]))
    if norms["dims"] and not notable:
        yield Finding(
            "not found",
            f"At no selected dimension is a norm's |gain| {number(NOTABLE)} times larger or smaller than the median "
            "|gain| of the unselected dimensions.",
        )


def _prediction(loss: Part | None) -> Finding:
    if loss is None:
        return Finding("not found", "There is no loss: no token of the text has one before it.")
    bits = "" if loss["bits_per_byte"] is None else f" and {number(loss['bits_per_byte'])} bits per byte"
    return Finding(
        "prediction",
        f"The model predicts the text with perplexity {number(loss['perplexity'])}{bits} "
        f"({number(loss['nats_per_token'])} nats per token), over {count(loss['tokens'], 'predicted token')}, which "
        f"{_are(loss['tokens'])} {count(loss['bytes'], 'byte')} of UTF-8 text.",
    )


def _effect(ablation: Part) -> Finding:
    text, details = ablation_sentences(ablation)
    return Finding("effect", text, tuple(details))


def _super_weights(search: Part) -> Finding:
    found, text, details = super_weight_sentences(search)
    return Finding("found" if found else "not found", text, tuple(details))


def _sites(summary: Part, rule: str) -> str:
    return listing(applied_sites(summary, rule))


def _dims_of(summary: Part, rule: str, selected: int) -> str:
    """Of other bases than the residual stream the summary does not have the width."""
    total = "" if run_rules(summary)[rule].basis != RESIDUAL else f" of {summary['model']['d_model']:,}"
    return f"{count(selected, 'dimension')}{total}"


def _of_sequences(summary: Part, row: Part) -> str:
    return f"{row['sequences_passing']:,} of {count(summary['corpus']['sequences'], 'sequence')}"


def _majority(result: Part) -> str:
    selected, majority = result["dims_selected"], result["dims_selected_majority"]
    each = "" if selected == 1 else "each "
    if majority == selected:
        return f", {each}in more than half of the sequences"
    if not majority:
        return f", {each}in half of the sequences or fewer"
    return f", {majority:,} of them in more than half of the sequences"


def _counts(result: Part) -> str:
    passing = result["pairs_passing"]
    return (
        f"{count(result['occurrences'], 'occurrence')} at {count(result['locations'], 'location')}, in "
        f"{count(result['pairs_with_hit'], 'pair')} of a sequence and a dimension, of which "
        f"{f'{passing:,}' if passing else 'none'} {'pass' if passing > 1 else 'passes'}"
    )
