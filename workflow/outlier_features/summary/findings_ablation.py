"""What ablations and the search for super weights found, in words."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from outlier_features.ablate.ablation_effects import position_name, target_name
from outlier_features.visible_text import visible
from outlier_features.wording import count, layers, listing, number, percent

Part = Mapping[str, Any]
WEIGHTS_IN_FULL = 6
PUBLISHED_IN_FULL = 8


def super_weight_sentences(search: Part) -> tuple[bool, str, list[str]]:
    """Whether any was found, a sentence on the search, and one for each of the first weights and on what is left."""
    found = search["found"]
    rule = (
        f"rule super_weight on mlp_act and mlp_down (|x| > {number(search['threshold'])} on both), over the first "
        f"{count(search['tokens'], 'token')} of sequence 0, population all"
    )
    if not found:
        text = f"There is no super weight by {rule}: in no layer do both spike."
        return False, text, [*_not_searched(search), *_published(search)]
    end = "after these, no layer spikes that would give another"
    if len(found) >= search["rounds"]:
        end = f"it stopped at its limit of {count(search['rounds'], 'round')}"
    text = (
        f"The search by {rule}, finds {count(len(found), 'super weight')}, one a round, the earliest layer first and "
        f"each set to zero for the rounds that follow; {end}. By the rule a weight needs only to join two spikes: what "
        "it is worth, its ablation shows."
    )
    details = [_found(row) for row in found[:WEIGHTS_IN_FULL]]
    if len(found) > WEIGHTS_IN_FULL:
        rest = found[WEIGHTS_IN_FULL:]
        details.append(f"And {len(rest)} more, in {layers([row['layer'] for row in rest])}.")
    return True, text, [*details, *_not_searched(search), *_published(search)]


def _found(row: Part) -> str:
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
    listed = list(dict.fromkeys((row["layer"], row["row"], row["col"]) for row in search["published"]))
    names = listing(sorted({visible(row["hub_id"]) for row in search["published"]}))
    for ending, places in (
        ("found here", [place for place in listed if place in here]),
        ("not", [place for place in listed if place not in here]),
    ):
        if places:
            verb = f"{'was' if len(places) == 1 else 'were'} {ending}"
            shown = ", ".join(f"{layer}: [{row}, {col}]" for layer, row, col in places[:PUBLISHED_IN_FULL])
            more = f" and {len(places) - PUBLISHED_IN_FULL} more" if len(places) > PUBLISHED_IN_FULL else ""
            yield f"Of {len(listed)} published for {names}, {len(places)} {verb} (layer: [row, column]): {shown}{more}."


def ablation_sentences(ablation: Part) -> tuple[str, list[str]]:
    """A sentence on the unchanged model, and one for each target on what happens without it."""
    base, *effects = ablation["effects"]
    text = (
        f"Over the first {count(ablation['tokens'], 'token')} of the first {count(ablation['sequences'], 'sequence')} "
        f"({count(base['tokens'], 'predicted token')}) the unchanged model has perplexity "
        f"{number(base['perplexity'])}{_range(base['sequences'], ' ({} in single sequences)')} and mean top-1 "
        f"probability {percent(base['top1_probability'])}."
    )
    if not effects:
        return f"{text} {nothing_to_ablate(ablation)}, so nothing was ablated.", []
    targets: dict[tuple[str, str | None], list[Part]] = {}
    for effect in effects:
        targets.setdefault((target_name(effect), effect["rule"]), []).append(effect)
    return text, [
        _target(name, rule, treated, ablation["only_first_excluded"]) for (name, rule), treated in targets.items()
    ]


def nothing_to_ablate(ablation: Part) -> str:
    """Why an ablation has the unchanged model alone."""
    weights = "no super weight was found" if ablation["weights_searched"] else "super weights were not searched"
    return f"No dimension is selected by a rule whose dimensions are ablated in population all, and {weights}"


def _target(name: str, rule: str | None, treated: Sequence[Part], only_first: bool) -> str:
    start = f"{name[0].upper()}{name[1:]} (rule {rule}) set"
    parts = []
    for positions in dict.fromkeys(effect["positions"] for effect in treated):
        outcomes = [
            f"to {_value(effect)}, perplexity {number(effect['perplexity'])}{_times(effect)}"
            for effect in treated
            if effect["positions"] == positions
        ]
        where = "" if positions == "all" else f" at {position_name(positions, only_first)}"
        parts.append(f"{where} {'; '.join(outcomes)}")
    return f"{start}{';'.join(parts)}.{_random(treated)}"


def _value(effect: Part) -> str:
    if effect["value"] == "mean":
        return "its mean" if effect["number"] == 1 else "their means"
    return "zero"


def _times(effect: Part) -> str:
    each = _range(effect["ratios"], ", {} in single sequences")
    return "" if effect["ratio"] is None else f" ({number(effect['ratio'])} times the unchanged{each})"


def _random(treated: Sequence[Part]) -> str:
    draws = {row["seed"] for effect in treated for row in effect["random"]}
    if not draws:
        return ""
    noun = "weight" if treated[0]["target"] == "weight" else "dimension"
    number_of = treated[0]["number"]
    as_many = f"a random {noun}" if number_of == 1 else f"{number_of} random {noun}s"
    found = _range([row["perplexity"] for effect in treated for row in effect["random"]], " {}")
    alike = ", treated alike" if len(treated) > 1 else ""
    return f" {count(len(draws), 'draw')} of {as_many}{alike}: perplexity{found}."


def _range(values: Iterable[float | None], text: str) -> str:
    finite = [value for value in values if value is not None]
    if not finite:
        return text.format("not finite")
    low, high = number(min(finite)), number(max(finite))
    return text.format(low if low == high else f"{low} to {high}")
