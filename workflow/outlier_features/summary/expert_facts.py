"""What a mixture of experts showed: which experts make massive activations."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from outlier_features.summary.fact import Fact, Topic, is_or_are, rest, some
from outlier_features.visible_text import quoted
from outlier_features.wording import count, layers, listing, number, percent

Part = Mapping[str, Any]
IN_FULL = 4


def expert_facts(experts: Part | None) -> Iterator[Fact]:
    """From `experts_summary`; none of a model without experts."""
    if experts is None:
        return
    yield _super_experts(experts)
    if experts["routing"]:
        text = (
            f"The MLPs with experts that form massive activations are those of {layers(experts['forming'])}; the "
            "largest part of each, at the dimension's largest massive activation:"
        )
        yield _fact("found", text, map(_formed, experts["routing"][:IN_FULL]), experts["routing"][IN_FULL:])
    if experts["published"] is not None:
        yield _compared(experts["published"])


def _fact(topic: Topic, text: str, lines: Iterable[str] = (), more: Sequence[Part] = ()) -> Fact:
    parts = [Fact(what="expert", topic=topic, short=line) for line in lines]
    return Fact(what="experts", topic=topic, short=text, rule="super_expert", sites="expert_out", population="all",
                parts=(*parts, *rest(len(more), "dimension-layer pair", topic)))  # fmt: skip


def _super_experts(experts: Part) -> Fact:
    where = (
        f"among {count(experts['routed'], 'routed expert')}{_never(experts)}"
        f"{' and ' + count(experts['shared'], 'shared one') if experts['shared'] else ''} in "
        f"{layers(experts['layers'])}, over {count(experts['sequences'], 'sequence')} (site expert_out, all positions)"
    )
    others = "".join([*_elsewhere(experts["elsewhere"]), *_by_code(experts["super_experts"], experts["by_code"])])
    if not experts["super_experts"]:
        why = "" if experts["forming"] else ": no layer with experts forms a massive activation"
        return _fact("not found", f"Rule super_expert finds none {where}{why}.{others}")
    rows = experts["super_experts"]
    text = f"Rule super_expert finds {count(len(rows), 'super expert')} {where}: {_some(rows)}.{others}"
    return _fact("found", text, map(_super_expert, rows[:IN_FULL]))


def _never(experts: Part) -> str:
    return f" ({experts['never_chosen']:,} of them never chosen)" if experts["never_chosen"] else ""


def _named(row: Part) -> str:
    name = "the shared expert" if row["part"] == "shared" else f"expert {row['expert']}"
    return f"{name} of layer {row['layer']}"


def _super_expert(row: Part) -> str:
    named = _named(row)
    return (
        f"{named[0].upper()}{named[1:]} writes up to |x| = {number(row['max_abs'])} (dimension {row['dim']}, position "
        f"{row['token']} of sequence {row['sequence']}), {number(row['max_abs_weighted'])} after its weight; "
        f"{count(row['tokens_routed'], 'position')} went through it, with mean weight {number(row['mean_weight'])}."
    )


def _elsewhere(rows: Sequence[Part]) -> Iterator[str]:
    """Experts as large, where no massive activation is formed."""
    if not rows:
        return
    early = sum(row["first_three_quarters_code"] for row in rows)
    yield (
        f" As large, but in layers that form no massive activation: {_some(rows)} ({early:,} of {len(rows):,} in "
        "the first three quarters of the layers, the published code's condition)."
    )


def _by_code(by_text: Sequence[Part], by_code: Sequence[Part]) -> Iterator[str]:
    """What the authors' code would find, where that is something else."""
    if {_named(row) for row in by_text} == {_named(row) for row in by_code}:
        return
    yield (
        " The authors' code, which ranks the experts of the first three quarters of the layers alone "
        f"(super_expert_code), would find {_some(by_code) if by_code else 'none'}."
    )


def _some(rows: Sequence[Part]) -> str:
    return some([*map(_named, rows)], IN_FULL)


def _formed(row: Part) -> str:
    name = "the shared expert" if row["part"] == "shared" else f"expert {row['expert']}"
    token = f"token {quoted(row['token_text'])}, " if row["token_text"] else ""
    return (
        f"Dimension {row['dim']} (x = {number(row['activation'])} at {token}position {row['token']} of sequence "
        f"{row['sequence']}): layer {row['layer']} adds {number(row['mlp_out'])}; {name} (weight "
        f"{number(row['weight'])}) gives {percent(row['share'])} of the MLP's output, the largest of "
        f"{count(row['parts'], 'part')}."
    )


def _compared(published: Sequence[Part]) -> Fact:
    same = [row for row in published if row["super_expert"]]
    names = listing(_named(row) for row in published)
    text = (
        f"Published as super experts of this model: {names} (Su et al. 2025); {len(same)} of {len(published)} "
        f"{is_or_are(len(same))} among those found here."
    )
    return _fact("found" if same else "not found", text)
