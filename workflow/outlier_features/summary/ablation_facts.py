"""What ablations and the search for super weights showed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from outlier_features.ablate.ablation_effects import position_name, target_name
from outlier_features.summary.fact import Fact, Topic
from outlier_features.visible_text import visible
from outlier_features.wording import count, layers, listing, number, percent

Part = Mapping[str, Any]
WEIGHTS_IN_FULL = 6
PUBLISHED_IN_FULL = 8


def super_weight_facts(search: Part) -> Iterator[Fact]:
    """The search, each of its first weights, what was not searched, and what was published of the model."""
    weights = search["found"]
    topic: Topic = "found" if weights else "not found"
    rule = (
        f"rule super_weight on mlp_act and mlp_down (|x| > {number(search['threshold'])} on both), over the first "
        f"{count(search['tokens'], 'token')} of sequence 0, population all"
    )
    end = "after these, no layer spikes that would give another"
    if len(weights) >= search["rounds"]:
        end = f"it stopped at its limit of {count(search['rounds'], 'round')}"
    text = f"There is no super weight by {rule}: in no layer do both spike."
    if weights:
        text = (
            f"The search by {rule}, finds {count(len(weights), 'super weight')}, one a round, the earliest layer first "
            f"and each set to zero for the rounds that follow; {end}. By the rule a weight needs only to join two "
            "spikes: what it is worth, its ablation shows."
        )
    more = weights[WEIGHTS_IN_FULL:]
    lines = [
        *map(_weight, weights[:WEIGHTS_IN_FULL]),
        *([f"And {len(more)} more, in {layers([row['layer'] for row in more])}."] if more else []),
        *_not_searched(search),
        *_published(search),
    ]
    yield Fact(what="super weights", topic=topic, short=text, rule="super_weight", values=search,
               parts=tuple(Fact(what="super weight", topic=topic, short=line) for line in lines))  # fmt: skip


def _weight(row: Part) -> str:
    return (
        f"Round {row['round']}: layer {row['layer']}, W_down[{row['row']}, {row['col']}] = {number(row['value'])}; "
        f"mlp_act {number(row['mlp_act'])} in neuron {row['col']} at position {row['mlp_act_token']}, mlp_down "
        f"{number(row['mlp_down'])} in dimension {row['row']} at position {row['mlp_down_token']}."
    )


def _not_searched(search: Part) -> Iterator[str]:
    for reason, indices in search["not_searched"].items():
        was = "was" if len(indices) == 1 else "were"
        yield f"{layers(indices).capitalize()} {was} not searched: {visible(reason)}."


def _published(search: Part) -> Iterator[str]:
    if not search["published"]:
        yield "No published super weights of this model are known here, to compare with."
        return
    here = {(row["layer"], row["row"], row["col"]) for row in search["found"]}
    printed = list(dict.fromkeys((row["layer"], row["row"], row["col"]) for row in search["published"]))
    names = listing(sorted({visible(row["hub_id"]) for row in search["published"]}))
    for ending, places in (
        ("found here", [place for place in printed if place in here]),
        ("not", [place for place in printed if place not in here]),
    ):
        if places:
            verb = f"{'was' if len(places) == 1 else 'were'} {ending}"
            shown = ", ".join(f"{layer}: [{row}, {col}]" for layer, row, col in places[:PUBLISHED_IN_FULL])
            more = f" and {len(places) - PUBLISHED_IN_FULL} more" if len(places) > PUBLISHED_IN_FULL else ""
            start = f"Of {len(printed)} published for {names}, {len(places)} {verb}"
            yield f"{start} (layer: [row, column]): {shown}{more}."


def ablation_facts(ablation: Part) -> Iterator[Fact]:
    """The unchanged model, and for each target what happens without it; of a dim alone the worst leads."""
    base, *effects = ablation["effects"]
    text = (
        f"Over the first {count(ablation['tokens'], 'token')} of the first {count(ablation['sequences'], 'sequence')} "
        f"({count(base['tokens'], 'predicted token')}) the unchanged model has perplexity "
        f"{number(base['perplexity'])}{_range(base['sequences'], ' ({} in single sequences)')} and mean top-1 "
        f"probability {percent(base['top1_probability'])}."
    )
    if not effects:
        text += f" {nothing_to_ablate(ablation)}, so nothing was ablated."
    targets: dict[tuple[str, str | None], list[Part]] = {}
    for effect in effects:
        targets.setdefault((target_name(effect), effect["rule"]), []).append(effect)
    parts = [_Target(ablation, name, treated) for (name, _), treated in targets.items()]
    worst: dict[int, _Target] = {}
    for part in sorted((part for part in parts if part.dim is not None and part.worst), key=lambda part: part.harm):
        worst[part.dim] = part  # type: ignore[index]
    yield Fact(what="ablation", topic="effect", short=text, values=base,
               parts=tuple(part.fact(leading=part in worst.values()) for part in parts))  # fmt: skip


def nothing_to_ablate(ablation: Part) -> str:
    """Why an ablation has the unchanged model alone."""
    weights = "no super weight was found" if ablation["weights_searched"] else "super weights were not searched"
    return f"No dimension is selected by a rule whose dimensions are ablated in population all, and {weights}"


class _Target:
    """What was changed in one place, in every way that was tried."""

    def __init__(self, ablation: Part, name: str, effects: Sequence[Part]):
        self.ablation, self.name, self.effects = ablation, name, effects
        alone = effects[0]["target"] == "dims" and effects[0]["number"] == 1
        self.dim = int(effects[0]["dims"]) if alone else None
        zeros = [effect for effect in effects if effect["value"] == "zero" and effect["ratio"] is not None]
        self.worst = max(zeros, key=lambda effect: effect["ratio"], default=None)
        self.harm = self.worst["ratio"] if self.worst else 0.0

    def fact(self, leading: bool) -> Fact:
        return Fact(
            what="ablated",
            topic="effect",
            short=self._in_short() if self.worst else "",
            full=self._in_full(),
            rule=self.effects[0]["rule"],
            sites=f"{self.name}, first {count(self.ablation['tokens'], 'token')} of "
            f"{count(self.ablation['sequences'], 'sequence')}",
            dim=self.dim,
            values={"effects": self.effects},
            leading=leading,
        )

    def _in_short(self) -> str:
        worst, base = self.worst, self.ablation["effects"][0]
        assert worst
        means = [
            effect["perplexity"]
            for effect in self.effects
            if effect["value"] == "mean" and effect["positions"] == worst["positions"] and effect["ratio"] is not None
        ]
        mean = f", and to {number(means[0])} when it is set to its mean" if means else ""
        draws = [draw["perplexity"] for draw in worst["random"] if draw["perplexity"] is not None]
        random = f" Random dimensions set to zero alike: at most {number(max(draws))}." if draws else ""
        return (
            f"Perplexity goes from {number(base['perplexity'])} to {number(worst['perplexity'])} when it is set to "
            f"zero at {position_name(worst['positions'], self.ablation['only_first_excluded'])}{mean}.{random}"
        )

    def _in_full(self) -> str:
        treatments = []
        for positions in dict.fromkeys(effect["positions"] for effect in self.effects):
            outcomes = [
                f"to {self._value(effect)}, perplexity {number(effect['perplexity'])}{_times(effect)}"
                for effect in self.effects
                if effect["positions"] == positions
            ]
            where = position_name(positions, self.ablation["only_first_excluded"])
            treatments.append(f"{'' if positions == 'all' else f' at {where}'} {'; '.join(outcomes)}")
        start = f"{self.name[0].upper()}{self.name[1:]} (rule {self.effects[0]['rule']}) set"
        return f"{start}{';'.join(treatments)}.{self._random()}"

    def _value(self, effect: Part) -> str:
        if effect["value"] == "mean":
            return "its mean" if effect["number"] == 1 else "their means"
        return "zero"

    def _random(self) -> str:
        draws = {row["seed"] for effect in self.effects for row in effect["random"]}
        if not draws:
            return ""
        noun, size = "weight" if self.effects[0]["target"] == "weight" else "dimension", self.effects[0]["number"]
        as_many = f"a random {noun}" if size == 1 else f"{size} random {noun}s"
        alike = ", treated alike" if len(self.effects) > 1 else ""
        values = _range([row["perplexity"] for effect in self.effects for row in effect["random"]], " {}")
        return f" {count(len(draws), 'draw')} of {as_many}{alike}: perplexity{values}."


def _times(effect: Part) -> str:
    each = _range(effect["ratios"], ", {} in single sequences")
    return "" if effect["ratio"] is None else f" ({number(effect['ratio'])} times the unchanged{each})"


def _range(values: Iterable[float | None], text: str) -> str:
    finite = [value for value in values if value is not None]
    if not finite:
        return text.format("not finite")
    low, high = number(min(finite)), number(max(finite))
    return text.format(low if low == high else f"{low} to {high}")
