"""What the rules of a run selected: facts of its summary, whatever rules it has."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from outlier_features.model.bases import NO_OTHER_MIXER, RESIDUAL
from outlier_features.rules.kinds import followed
from outlier_features.rules.rule import SCALES, HitRule
from outlier_features.summary.fact import DIMS_BY_NUMBER, Fact, is_or_are, rest, some, summed
from outlier_features.summary.run_rules import applied_sites, listed, run_rules
from outlier_features.visible_text import quoted, visible
from outlier_features.wording import count, layers, listing, number, percent

Part = Mapping[str, Any]
DIMS_IN_FULL = 4
_FIRST = "the first position of a sequence or a special token"


def rule_facts(summary: Part) -> list[Fact]:
    """What each rule selected in each population, what they have in common, and where one could not be applied."""
    return [
        *(fact for population in summary["populations"] for fact in _of_population(summary, population)),
        *_located(summary["location"]),
        *_not_applied(summary),
        *_absent_sites(summary),
        *_dense_sites(summary),
    ]


def _of_population(summary: Part, population: str) -> Iterator[Fact]:
    if not summary["corpus"]["positions"][population]:
        text = f"Population {population} has no positions, so nothing is said about it."
        yield Fact(what="no positions", topic="not found", short=text, population=population)
        return
    results = summary["populations"][population]["rules"]
    rules = {name: rule for name, rule in run_rules(summary).items() if name in results}
    facts = {name: _RuleInPopulation(summary, population, rule).fact() for name, rule in rules.items()}
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, rule in rules.items():
        groups.setdefault((rule.basis, *sorted(row["dim"] for row in results[name]["dims"])), []).append(name)
    for (_, *dims), names in ((group, names) for group, names in groups.items() if len(group) > 1):
        same = "the same dimension" if len(dims) == 1 else f"the same {len(dims):,} dimensions"
        yield from summed(
            [facts[name] for name in names],
            f"Rules {listing(names)} select {same} in population {population}: {some(dims)}.",
        )
    none = [facts[name] for name in rules if not results[name]["dims"]]
    yield from summed(
        none, f"No dimension is selected in population {population} by rules {listing(fact.rule for fact in none)}."
    )
    yield from _overlaps(summary, population)
    yield from _scales(rules, results, population)
    if summary["populations"][population]["largest"]:
        yield _largest(summary["populations"][population]["largest"], population)


class _RuleInPopulation:
    """What one rule selected in one population."""

    def __init__(self, summary: Part, population: str, rule: HitRule):
        self.summary, self.population, self.rule = summary, population, rule
        self.result = summary["populations"][population]["rules"][rule.name]
        self.sites = applied_sites(summary, rule.name)
        self.start = f"Rule {rule.name} on {listing(self.sites)}"
        self.size = f"{SCALES[rule.scale]} >= {number(rule.threshold)}"
        self.sequences = count(summary["corpus"]["sequences"], "sequence")
        self.hits = listed(summary, population, rule.name) if rule.lists_hits else None

    def fact(self) -> Fact:
        rows = self.result["dims"]
        short, full = self._selected() if rows else self._none()
        return Fact(
            what="selected" if rows else "none selected",
            topic="found" if rows else "not found",
            short=short,
            full=f"{short} {full}",
            rule=self.rule.name,
            sites=" + ".join(self.sites),
            population=self.population,
            values={key: value for key, value in self.result.items() if key != "dims"}
            | {"dims": [row["dim"] for row in rows]},
            leading=self.rule.follow_up,
            parts=(
                *(self._dim(row) for row in rows[:DIMS_IN_FULL]),
                *rest(
                    len(rows) - DIMS_IN_FULL,
                    "dimension",
                    "found",
                    ", ".join(str(row["dim"]) for row in rows[DIMS_IN_FULL : DIMS_IN_FULL + DIMS_BY_NUMBER])
                    + (" and others" if len(rows) > DIMS_IN_FULL + DIMS_BY_NUMBER else ""),
                ),
            ),
        )

    def _selected(self) -> tuple[str, str]:
        selected = self.result["dims_selected"]
        # Other bases have widths that the summary does not have.
        total = f" of {self.summary['model']['d_model']:,}" if self.rule.basis == RESIDUAL else ""
        dims = f"{count(selected, 'dimension')}{total}"
        if self.hits is None:
            hit = self.result["dims_with_hit"]
            return (
                f"{self.start} selects {dims} in population {self.population}{self._majority()}.",
                f"{count(hit, 'dimension')} with a hit {'has' if hit == 1 else 'have'} {self._counts()}.",
            )
        return (
            f"{self.start} finds {count(self.hits['activations'], self.rule.noun)} in population {self.population}, "
            f"in {dims}{self._majority()}.",
            f"{'It is' if self.hits['activations'] == 1 else 'They are'} at "
            f"{count(self.hits['positions'], 'position')} and in {layers(self.hits['layers'])}."
            f"{self._where_excluded()}",
        )

    def _majority(self) -> str:
        selected, majority = self.result["dims_selected"], self.result["dims_selected_majority"]
        if 0 < majority < selected:
            return f", {majority:,} of them in more than half of the sequences"
        each = "" if selected == 1 else "each "
        return f", {each}in {'more than half of the sequences' if majority else 'half of the sequences or fewer'}"

    def _counts(self) -> str:
        passing = self.result["pairs_passing"]
        return (
            f"{count(self.result['occurrences'], 'occurrence')} at {count(self.result['locations'], 'location')}, in "
            f"{count(self.result['pairs_with_hit'], 'pair')} of a sequence and a dimension, of which "
            f"{f'{passing:,}' if passing else 'none'} {'pass' if passing > 1 else 'passes'}"
        )

    def _where_excluded(self) -> str:
        """In population `without_first` no position is excluded, so there is nothing to say."""
        if self.population != "all" or not self.hits:
            return ""
        excluded, all_of_them = self.hits["at_excluded_positions"], self.hits["activations"]
        position = f" (position {self.hits['by_token'][0]['token']})" if self.hits["tokens"] == 1 else ""
        if excluded == all_of_them:
            return f" {'It is' if all_of_them == 1 else 'All of them are'} at {_FIRST}{position}."
        return f" {excluded:,} of {all_of_them:,} {is_or_are(excluded)} at {_FIRST}{position}."

    def _none(self) -> tuple[str, str]:
        hit = self.result["dims_with_hit"]
        if self.hits is not None:
            short = f"{self.start} finds no {self.rule.noun} in population {self.population}:"
            return short, f"no value there meets its criteria, {self.rule.criteria()}."
        short = f"{self.start} selects no dimension in population {self.population}:"
        if not hit:
            return short, f"no value there has {self.size}."
        return short, f"{count(hit, 'dimension')} with {self.size} there, {self._counts()}."

    def _dim(self, row: Part) -> Fact:
        short = self._values_of(row) if self.hits is None else self._hits_of(row)
        everywhere = self.summary["populations"].items()
        elsewhere = [name for name, part in everywhere if row["dim"] in _selected_dims(part, self.rule.name)]
        only_first = self.population == "all" and elsewhere == ["all"] and len(everywhere) == 2
        if only_first and self.summary["corpus"]["positions"]["without_first"]:
            if self.hits is None:
                short += " Without the first position and special tokens it does not pass."
            # Medians of population without_first are others, so that it selects none does not say this.
            elif self.hits["at_excluded_positions"] == self.hits["activations"]:
                short += f" Every {self.rule.noun} of this text is at the first position or a special token."
        return Fact(
            what="dim",
            topic="found",
            short=short,
            full=f"Dimension {row['dim']}: {short} Its kind is {row['kind']}.{_steps(row)}",
            rule=self.rule.name,
            sites=" + ".join(self.sites),
            population=self.population,
            dim=row["dim"],
            values=row,
            leading=self.rule.follow_up,
        )

    def _values_of(self, row: Part) -> str:
        what = self.size if self.rule.counts_suffice else "hits"
        return (
            f"It has {what} at {percent(row['union_mean'])} of the positions and in {percent(row['blocks_mean'])} of "
            f"the layers (within {_extent(row)}), on average over the {count(row['sequences'], 'sequence')} with a "
            f"hit; {row['sequences_passing']:,} of {self.sequences} pass. The largest is {number(row['max_abs'])}."
        )

    def _hits_of(self, row: Part) -> str:
        (largest,) = (one for one in self.hits["dims"] if one["dim"] == row["dim"])  # type: ignore[index]
        token = largest["token_text"]
        of_text = "" if token is None else f", the token {quoted(token)}" if token else ", a token without text"
        return (
            f"x reaches {number(largest['value'])} in layer {largest['layer']}, {number(largest['ratio'])} times the "
            f"median |x| there ({number(largest['median'])}), at position {largest['token']} of sequence "
            f"{largest['sequence']}{of_text}. It has {self.rule.noun}s in {row['sequences_passing']:,} of "
            f"{self.sequences}, within {_extent(row)}."
        )


def _selected_dims(population: Part, rule: str) -> list[int]:
    return [row["dim"] for row in population["rules"].get(rule, {"dims": []})["dims"]]


def _extent(row: Part) -> str:
    return layers(range(row["first_layer"], row["last_layer"] + 1))


def _steps(row: Part) -> str:
    if row["step_up"] is None:
        return ""
    down = "does not step down" if row["step_down"] is None else f"down in {row['step_down']}"
    return f" On resid_post it steps up in layer {row['step_up']} and {down}."


def _overlaps(summary: Part, population: str) -> Iterator[Fact]:
    """What every two of the followed rules have in common; the pairs that share nothing in one sentence."""
    shown = followed(summary["rules"]).keys()
    pairs = [
        pair
        for pair in summary["populations"][population]["overlaps"]
        if pair["jaccard"] is not None and {*pair["rules"]} <= shown
    ]
    for pair in pairs:
        common, rules = pair["common"], listing(pair["rules"])
        if common:
            noun = "Dimension" if len(common) == 1 else "Dimensions"
            text = f"{noun} {some(common)} {is_or_are(len(common))} selected by both rules, {rules},"
            yield Fact(what="overlap", topic="found", population=population, values=pair,
                       short=f"{text} in population {population} ({_jaccard(pair)}).")  # fmt: skip
    apart = [pair for pair in pairs if not pair["common"]]
    if apart:
        named = listing(f"{listing(pair['rules'])} ({_jaccard(pair)})" for pair in apart)
        both = "both rules, " if len(apart) == 1 else "both rules of a pair: "
        yield Fact(what="overlap", topic="not found", population=population, values={"pairs": apart},
                   short=f"No dimension is selected in population {population} by {both}{named}.")  # fmt: skip


def _jaccard(pair: Part) -> str:
    either = count(pair["union"], "dimension")
    return f"Jaccard index {number(float(pair['jaccard']))}: {len(pair['common'])} of {either} selected by either"


def _scales(rules: Mapping[str, HitRule], results: Part, population: str) -> Iterator[Fact]:
    """How rules that compare |x| itself with a threshold and rules with a scale differ by what they select."""
    kinds = {rule.kind for rule in rules.values() if rule.scale}
    alike = {name: rule for name, rule in rules.items() if rule.kind in kinds and rule.basis == RESIDUAL}
    selected = {name: {row["dim"] for row in results[name]["dims"]} for name in alike}
    free, fixed = ([name for name, rule in alike.items() if bool(rule.scale) == scaled] for scaled in (True, False))
    if not free or not fixed:
        return
    by_free, by_fixed = (set[int]().union(*(selected[name] for name in names)) for names in (free, fixed))
    by = {names: listing(f"{len(selected[name]):,} by {name}" for name in names) for names in map(tuple, (fixed, free))}
    parts = [
        f"{len(dims):,} {which}{f' ({some(sorted(dims))})' if dims else ''}"
        for which, dims in (
            ("in common", by_fixed & by_free),
            ("by a fixed threshold alone", by_fixed - by_free),
            ("by a scale-free rule alone", by_free - by_fixed),
        )
    ]
    yield Fact(
        what="scales",
        topic="found",
        population=population,
        values={"fixed": sorted(by_fixed), "scale_free": sorted(by_free), "common": sorted(by_fixed & by_free)},
        short=f"Dimensions selected in population {population} by a fixed threshold of |x|: {by[tuple(fixed)]}; by "
        f"scale-free rules: {by[tuple(free)]}; {listing(parts)}.",
    )  # fmt: skip


def _largest(sites: Sequence[Part], population: str) -> Fact:
    ordered = sorted(sites, key=lambda row: -row["max"])
    values = [
        f"{number(row['max'])} on {visible(row['site'])} in layer {row['layer']} "
        f"(median |x| there {number(row['median'])})"
        for row in ordered
    ]
    return Fact(
        what="largest",
        topic="found",
        short=f"Largest |x| of each site in population {population}, whatever the rule: {listing(values)}.",
        population=population,
        values={"sites": ordered},
    )


def _located(location: Part | None) -> Iterator[Fact]:
    if location is None:
        return
    sign = ">=" if location["inclusive"] else ">"
    share = percent(location["layer_share"])
    criteria = f"|x| {sign} {number(location['threshold'])} in {share} of the layers or more"
    for population, sites in location["populations"].items():
        facts = [_location(criteria, population, site, result) for site, result in sites.items()]
        yield from (fact for fact in facts if fact.topic == "found")
        none = [fact for fact in facts if fact.topic == "not found"]
        names = listing(fact.sites for fact in none)
        yield from summed(none, f"Rule location ({criteria}) keeps no location in population {population} on {names}.")


def _location(criteria: str, population: str, site: str, result: Part) -> Fact:
    where = f"Rule location ({criteria}) on {visible(site)} in population {population}"
    text = (
        f"{where} keeps {count(result['occurrences'], 'occurrence')} at {count(result['locations'], 'location')} "
        f"({percent(result['location_rate'])} of all) in {count(result['dims'], 'dimension')}."
    )
    parts = [
        Fact(what="location of dim", topic="found", values=row, short=f"Dimension {row['dim']} has "
             f"{percent(row['share'])} of them, of which {percent(row['positive'] / row['count'])} are positive.")
        for row in result["top"]
    ]  # fmt: skip
    any_kept = bool(result["occurrences"])
    return Fact(
        what="location",
        topic="found" if any_kept else "not found",
        short=text if any_kept else f"{where} keeps no location.",
        rule="location",
        sites=site,
        population=population,
        values=result,
        parts=tuple(parts),
    )


def _not_applied(summary: Part) -> Iterator[Fact]:
    missing = {name: rule for name, rule in run_rules(summary).items() if not applied_sites(summary, name)}
    facts = [
        Fact(what="not applied", topic="not found", rule=name, leading=rule.follow_up, short=f"Rule {name} was not "
             f"applied: {listing(f'{site} {_why_missing(summary, site, rule.scale)}' for site in rule.sites)}.")
        for name, rule in missing.items()
    ]  # fmt: skip
    yield from summed(facts, f"Rules {listing(missing)} were not applied.")


def _why_missing(summary: Part, site: str, scale: str | None) -> str:
    unknown = summary["sites"].get("without_scale", {}).get(site, {}).get(scale)
    if unknown:
        return f"has no scale ({visible(unknown)})"
    reason = summary["sites"]["absent"].get(site)
    return f"is absent ({visible(reason)})" if reason else "was not recorded"


def _absent_sites(summary: Part) -> Iterator[Fact]:
    for site, reason in summary["sites"]["absent"].items():
        if reason == NO_OTHER_MIXER:
            continue
        whole = site not in summary["sites"]["present"]
        used = [name for name, rule in run_rules(summary).items() if whole and site in rule.sites]
        applied: dict[str, list[str]] = {}
        for name in used:
            if sites := listing(applied_sites(summary, name)):
                applied.setdefault(sites, []).append(name)
        effect = "".join(
            f" {'Rule' if len(names) == 1 else 'Rules'} {listing(names)} "
            f"{'was' if len(names) == 1 else 'were'} applied to {sites} alone."
            for sites, names in applied.items()
        )
        where = "this model" if whole else "a part of the layers"
        yield Fact(what="absent site", topic="not found", sites=site,
                   short=f"Site {visible(site)} is absent from {where}: {visible(reason)}.{effect}")  # fmt: skip


def _dense_sites(summary: Part) -> Iterator[Fact]:
    sequences = count(summary["corpus"]["sequences"], "sequence")
    dense = summary["sites"]["dense"]
    sites = [
        f"{percent(values['share'])} of the values on {visible(site)} are at or above {number(values['floor'])} "
        f"(too many in {values['sequences']:,} of {sequences})"
        for site, values in dense.items()
    ]
    if sites:
        yield Fact(what="dense sites", topic="found", values=dense, sites=" + ".join(dense),
                   short=f"{listing(sites)}; in these sequences hits are counted exactly but not listed.")  # fmt: skip
