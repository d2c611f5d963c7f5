"""What the rules of a run selected: facts of its summary, whatever rules it has."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from outlier_features.dim_marks import dim_mark
from outlier_features.model.bases import NO_OTHER_MIXER, RESIDUAL, basis_of
from outlier_features.populations import over_population
from outlier_features.rules.kinds import followed, rules_of
from outlier_features.rules.location import Location
from outlier_features.rules.rule import GAIN, HitRule
from outlier_features.summary.fact import Fact, rest, summed
from outlier_features.summary.run_rules import applied_sites, listed, run_rules, selected_dims
from outlier_features.visible_text import place, visible
from outlier_features.wording import capital, count, layers, listing, number, percent, rules_named, some

Part = Mapping[str, Any]
DIMS_IN_FULL = 4


def rule_facts(summary: Part) -> list[Fact]:
    """What each rule selected in each population, what they have in common, and where one could not be applied."""
    return [
        *(fact for population in summary["populations"] for fact in _of_population(summary, population)),
        *_located(summary),
        *_not_applied(summary),
        *_absent_sites(summary),
        *_dense_sites(summary),
        *_hidden_dims(summary),
    ]


def _of_population(summary: Part, population: str) -> Iterator[Fact]:
    if not summary["corpus"]["positions"][population]:
        text = f"{capital(over_population(population))} there are no positions, so nothing is said of them."
        yield Fact(what="no positions", topic="not found", short=text, population=population)
        return
    part, over = summary["populations"][population], over_population(population)
    rules = {name: rule for name, rule in run_rules(summary).items() if name in part["rules"]}
    groups: dict[tuple[Any, ...], list[Fact]] = {}
    for name, rule in rules.items():
        dims = sorted(selected_dims(part, name))
        # Dimensions of different bases are not the same, whatever their numbers; to select none is the same in all.
        fact = _Selection(summary, population, rule).fact()
        groups.setdefault((rule.basis, *dims) if dims else (None,), []).append(fact)
    for (_, *dims), facts in groups.items():
        what = f"the same {over}: {_named(dims, rules[facts[0].rule].basis)}" if dims else f"nothing {over}"
        yield from summed(facts, f"Rules {listing(fact.rule for fact in facts)} select {what}.")
    yield from _overlaps(summary, rules, population)
    yield from _scales(rules, part, population)
    if part["largest"]:
        yield _largest(part["largest"], population)


class _Selection:
    """What one rule selects in one population."""

    def __init__(self, summary: Part, population: str, rule: HitRule):
        self.summary, self.population, self.rule = summary, population, rule
        self.result = summary["populations"][population]["rules"][rule.name]
        self.sites = applied_sites(summary, rule.name)
        self.hits = listed(summary, population, rule.name) if rule.lists_hits else None
        self.where: Part = {"rule": rule.name, "sites": " + ".join(self.sites), "population": population}

    def fact(self) -> Fact:
        rows = self.result["dims"]
        dims = [row["dim"] for row in rows]
        # Other bases have widths that the summary does not have.
        width = f" of {self.summary['model']['d_model']:,}" if self.rule.basis == RESIDUAL else ""
        selected = f"{count(len(rows), 'dimension')}{width}" if rows else "no dimension"
        majority = f" ({self.result['dims_selected_majority']:,} in more than half of the sequences)" if rows else ""
        text = f"selects {selected} {over_population(self.population)}{majority}"
        if self.hits is not None:
            noun = count(self.hits["activations"], self.rule.noun) if rows else f"no {self.rule.noun}"
            text = f"finds {noun} {over_population(self.population)}{f', in {selected}{majority}' if rows else ''}"
        short = f"Rule {self.rule.name} on {listing(self.sites)} {text}."
        return Fact(
            what="selected" if rows else "none selected",
            topic="found" if rows else "not found",
            short=short,
            full=f"{short} {self._where() if rows and self.hits else self._counts()}",
            **self.where,
            values={key: value for key, value in self.result.items() if key != "dims"} | {"dims": dims},
            leading=self.rule.follow_up,
            parts=(
                *map(self._dim, rows[:DIMS_IN_FULL]),
                *rest(_numbers(dims[DIMS_IN_FULL:], self.rule.basis), "dimension", "found"),
            ),
        )

    def _counts(self) -> str:
        result, with_hit = self.result, self.result["dims_with_hit"]
        if self.hits is not None or not with_hit:
            return f"No value there has {self.rule.reaches if self.hits is None else self.rule.criteria()}."
        return (
            f"Hits: {count(result['occurrences'], 'occurrence')} at {count(result['locations'], 'location')} in "
            f"{count(with_hit, 'dimension')}. Pairs of a sequence and a dimension that pass: "
            f"{result['pairs_passing']:,} of {result['pairs_with_hit']:,} with a hit."
        )

    def _where(self) -> str:
        hits: Part = self.hits or {}
        text = f"Where: {count(hits['positions'], 'position')}, {layers(hits['layers'])}"
        if self.population == "all":  # in the other population no such position counts
            text += (
                f"; {hits['at_excluded_positions']:,} of {hits['activations']:,} at the first position of a sequence "
                "or a special token"
            )
        return f"{text}; all at position {hits['by_token'][0]['token']}." if hits["tokens"] == 1 else f"{text}."

    def _dim(self, row: Part) -> Fact:
        short = self._values_of(row) if self.hits is None else self._hits_of(row)
        lacking = [
            name
            for name, part in self.summary["populations"].items()
            if self.summary["corpus"]["positions"][name] and row["dim"] not in selected_dims(part, self.rule.name)
        ]
        if lacking:
            short += f" {capital(listing(map(over_population, lacking)))} the rule does not select it."
        (number_of,) = _numbers([row["dim"]], self.rule.basis)
        return Fact(
            what="dim",
            topic="found",
            short=short,
            full=f"Dimension {number_of} ({row['kind']}): {short}{_steps(row)}",
            **self.where,
            dim=row["dim"],
            values=row,
            leading=self.rule.follow_up,
        )

    def _passing(self, row: Part) -> str:
        return f"{row['sequences_passing']:,} of {count(self.summary['corpus']['sequences'], 'sequence')}"

    def _values_of(self, row: Part) -> str:
        return (
            f"{self.rule.reaches if self.rule.counts_suffice else 'hits'} at {percent(row['union_mean'])} of the "
            f"positions and in {percent(row['blocks_mean'])} of the layers (within {_extent(row)}), on average over "
            f"the {count(row['sequences'], 'sequence')} with a hit. {self._passing(row)} pass. The largest |x| of its "
            f"hits is {number(row['max_abs'])}."
        )

    def _hits_of(self, row: Part) -> str:
        (largest,) = (one for one in self.hits["dims"] if one["dim"] == row["dim"])  # type: ignore[index]
        return (
            f"Its largest {self.rule.noun} is {number(largest['value'])} in layer {largest['layer']}, "
            f"{number(largest['ratio'])} times the median |x| there ({number(largest['median'])}), at "
            f"{place(largest['sequence'], largest['token'], largest['token_text'])}; a value without "
            f"{self.rule.criteria()} may be larger. It has {self.rule.noun}s in "
            f"{self._passing(row)}, within {_extent(row)}."
        )


def _numbers(dims: Sequence[int], basis: str) -> list[str]:
    """Dims as sentences have them: those of other bases have numbers that are no dims of the residual stream."""
    return [dim_mark(dim) if basis == RESIDUAL else str(dim) for dim in dims]


def _named(dims: Sequence[int], basis: str) -> str:
    return f"dimension{'s' if len(dims) > 1 else ''} {some(_numbers(dims, basis))}"


def _extent(row: Part) -> str:
    return layers(range(row["first_layer"], row["last_layer"] + 1))


def _steps(row: Part) -> str:
    if row["step_up"] is None:
        return ""
    down = "does not step down" if row["step_down"] is None else f"down in {row['step_down']}"
    return f" On resid_post it steps up in layer {row['step_up']} and {down}."


def _overlaps(summary: Part, rules: Mapping[str, HitRule], population: str) -> Iterator[Fact]:
    """What every two of the followed rules have in common; the pairs that share nothing in one sentence."""
    shown = followed(summary["rules"]).keys()
    pairs = [pair for pair in summary["populations"][population]["overlaps"] if {*pair["rules"]} <= shown]
    apart = [pair for pair in pairs if pair["jaccard"] == 0]
    for pair in pairs:
        if pair["common"]:
            common = _named(pair["common"], rules[pair["rules"][0]].basis)
            of_all = f"{len(pair['common'])} of {count(pair['union'], 'dimension')} that either selects"
            yield Fact(what="overlap", topic="found", population=population, values=pair,
                       short=f"Rules {listing(pair['rules'])} both select {common} {over_population(population)}: "
                       f"{of_all}, Jaccard index {number(float(pair['jaccard']))}.")  # fmt: skip
    if apart:
        named = "; ".join(f"{listing(pair['rules'])} ({pair['union']:,} selected by either)" for pair in apart)
        yield Fact(what="overlap", topic="not found", population=population, values={"pairs": apart},
                   short=f"Rules that select no dimension in common {over_population(population)}: "
                   f"{named}.")  # fmt: skip


def _scales(rules: Mapping[str, HitRule], part: Part, population: str) -> Iterator[Fact]:
    """How rules that compare |x| itself with a threshold and rules with a scale differ by what they select."""
    kinds = {rule.kind for rule in rules.values() if rule.scale}
    alike = [rule for rule in rules.values() if rule.kind in kinds and rule.basis == RESIDUAL]
    free, fixed = ([rule.name for rule in alike if bool(rule.scale) == scaled] for scaled in (True, False))
    if not free or not fixed:
        return
    by_free, by_fixed = ({dim for name in names for dim in selected_dims(part, name)} for names in (free, fixed))
    dims = {
        "by both": sorted(by_fixed & by_free),
        "by a fixed threshold alone": sorted(by_fixed - by_free),
        "by a scale-free rule alone": sorted(by_free - by_fixed),
    }
    outcome = listing(
        f"{len(those):,} {which}" + (f" ({some(_numbers(those, RESIDUAL))})" if those else "")
        for which, those in dims.items()
    )
    yield Fact(what="scales", topic="found", population=population,
               values={"fixed": sorted(by_fixed), "scale_free": sorted(by_free), "common": dims["by both"]},
               short=f"Dimensions selected {over_population(population)}, fixed thresholds of |x| "
               f"({rules_named(fixed)}) beside scale-free ones ({rules_named(free)}): {outcome}.")  # fmt: skip


def _largest(sites: Sequence[Part], population: str) -> Fact:
    ordered = sorted(sites, key=lambda row: -row["max"])
    values = listing(
        f"{number(row['max'])} on {visible(row['site'])} in layer {row['layer']} (median {number(row['median'])})"
        for row in ordered
    )
    text = f"Largest |x| of each site {over_population(population)}, beside the median |x| there: {values}."
    return Fact(what="largest", topic="found", short=text, population=population, values={"sites": ordered})


def _located(summary: Part) -> Iterator[Fact]:
    if summary["location"] is None:
        for name, rule in rules_of(summary["rules"]).items():
            if isinstance(rule, Location) and rule.sites:
                text = f"Rule {name} was not applied: the run kept no activations, which it needs of all sequences."
                yield Fact(what="not applied", topic="not found", rule=name, short=text)
        return
    name = summary["location"]["rule"]
    start = f"Rule {name} ({rules_of(summary['rules'])[name].criteria()}) keeps"
    for population, sites in summary["location"]["populations"].items():
        none = []
        for site, result in sites.items():
            where = f"on {visible(site)} {over_population(population)}"
            if not result["occurrences"]:
                none.append(Fact(what="location", topic="not found", rule=name, sites=site, population=population,
                                 values=result, short=f"{start} no location {where}."))  # fmt: skip
                continue
            text = (
                f"{start} {count(result['occurrences'], 'occurrence')} at {count(result['locations'], 'location')} "
                f"({percent(result['location_rate'])} of all) in {count(result['dims'], 'dimension')} {where}."
            )
            dims = (
                Fact(what="location of dim", topic="found", values=row,
                     short=f"Dimension {listing(_numbers([row['dim']], basis_of(site)))} has "
                     f"{percent(row['share'])} of them, {percent(row['positive'] / row['count'])} of these positive.")
                for row in result["top"]
            )  # fmt: skip
            yield Fact(what="location", topic="found", rule=name, sites=site, population=population, values=result,
                       short=text, parts=tuple(dims))  # fmt: skip
        yield from summed(
            none, f"{start} no location {over_population(population)} on {listing(one.sites for one in none)}."
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
        users = [name for name, rule in run_rules(summary).items() if site in rule.sites]
        of_rules = f" It is a site of {rules_named(users)}." if users else ""
        where = "a part of the layers" if site in summary["sites"]["present"] else "this model"
        yield Fact(what="absent site", topic="not found", sites=site,
                   short=f"Site {visible(site)} is absent from {where}: {visible(reason)}.{of_rules}")  # fmt: skip


def _dense_sites(summary: Part) -> Iterator[Fact]:
    sequences = count(summary["corpus"]["sequences"], "sequence")
    for site, values in summary["sites"]["dense"].items():
        text = (
            f"{percent(values['share'])} of the values on {visible(site)} are at or above {number(values['floor'])}. "
            f"In {values['sequences']:,} of {sequences} they are too many to list; hits are counted exactly instead."
        )
        yield Fact(what="dense site", topic="found", values=values, sites=site, short=text)


def _hidden_dims(summary: Part) -> Iterator[Fact]:
    """Dims whose gain is too small for a rule that divides by it, by the layers in which it is."""
    rules = {name: rule for name, rule in run_rules(summary).items() if rule.scale == GAIN}
    for site, by_layer in summary["sites"].get("gains_left_out", {}).items():
        users = [name for name in rules if site in applied_sites(summary, name)]
        dims = sorted({dim for those in by_layer.values() for dim in those})
        hidden = {dim: [int(layer) for layer, those in by_layer.items() if dim in those] for dim in dims}
        where = [f"{dim_mark(dim)} ({layers(indices)})" for dim, indices in hidden.items()]
        if users:
            yield Fact(what="hidden dims", topic="not found", sites=site, rule=listing(users), values=by_layer,
                       short=f"On {visible(site)}, {rules_named(users, 'leave')} out "
                       f"{count(len(dims), 'dimension')}, whose |gain| in a layer is under a thousandth of the median "
                       f"there: {some(where)}.")  # fmt: skip
