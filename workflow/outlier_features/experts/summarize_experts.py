"""The experts' part of a run's summary, and what it says in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import polars as pl

from outlier_features.visible_text import quoted
from outlier_features.wording import count, layers, listing, number, percent

IN_FULL = 4
_SUPER = ("layer", "part", "expert", "max_abs", "max_abs_weighted", "sequence", "token", "dim", "tokens_routed",
          "mean_weight", "first_three_quarters_code", "published")  # fmt: skip

Part = Mapping[str, Any]
Said = tuple[Literal["found", "not found"], str, tuple[str, ...]]  # topic, sentence, details


def experts_summary(
    experts: pl.DataFrame, routing: pl.DataFrame, massive: pl.DataFrame, provenance: Part
) -> dict[str, Any] | None:
    """What was found of the experts; None for a model without any.

    massive   the run's massive activations, for the text of their tokens
    """
    if not provenance["has_experts"]:
        return None
    passing = experts.filter(pl.col("above_percentile") & pl.col("above_tenth"))
    order = pl.col("max_abs"), pl.col("layer"), pl.col("expert")
    passing = passing.sort(order, descending=[True, False, False])
    routed = experts.filter(part="expert")
    known = experts.filter("published") if experts["published"].null_count() < len(experts) else None
    return {
        "sequences": provenance["experts_sequences"],
        "layers": sorted(set(experts["layer"].to_list())),
        "routed": len(routed),
        "never_chosen": int(routed["max_abs"].null_count()),
        "shared": len(experts.filter(part="shared")),
        "forming": sorted(set(routing.filter("forms_massive")["layer"].to_list())),
        "super_experts": passing.filter("super_expert").select(_SUPER).to_dicts(),
        "by_code": experts.filter("super_expert_code")
        .sort(order, descending=[True, False, False])
        .select(_SUPER)
        .to_dicts(),
        "elsewhere": passing.filter(~pl.col("super_expert")).select(_SUPER).to_dicts(),
        "published": None if known is None else known.select("layer", "part", "expert", "super_expert").to_dicts(),
        "routing": _largest_parts(routing, massive),
    }


def _largest_parts(routing: pl.DataFrame, massive: pl.DataFrame) -> list[dict[str, Any]]:
    """Of each massive activation and layer that forms it the largest part, in the table's order."""
    place = ("sequence", "token", "dim")
    texts = massive.select(*place, "token_text").unique(place, keep="first", maintain_order=True)
    forming = routing.filter("forms_massive")
    parts = forming.with_columns(parts=pl.len().over("dim", "layer")).unique(
        ("dim", "layer"), keep="first", maintain_order=True
    )
    return parts.join(texts, on=place, how="left", maintain_order="left").to_dicts()


def experts_in_words(found: Part | None) -> Iterator[Said]:
    """Topic (`found` or `not found`), sentence and details, from `experts_summary`."""
    if found is None:
        return
    yield _super_experts(found)
    if found["routing"]:
        details = [_formed(row) for row in found["routing"][:IN_FULL]]
        rest = len(found["routing"]) - IN_FULL
        if rest > 0:
            details.append(f"And in {count(rest, 'more pair')} of a dimension and a layer.")
        yield (
            "found",
            f"The MLPs with experts that form massive activations are those of {layers(found['forming'])}; the largest "
            "part of each, at the dimension's largest massive activation:",
            tuple(details),
        )
    if found["published"] is not None:
        yield _compared(found["published"])


def _super_experts(found: Part) -> Said:
    where = (
        f"among {count(found['routed'], 'routed expert')}{_never(found)}"
        f"{' and ' + count(found['shared'], 'shared one') if found['shared'] else ''} in {layers(found['layers'])}, "
        f"over {count(found['sequences'], 'sequence')} (site expert_out, all positions)"
    )
    others = "".join([*_elsewhere(found["elsewhere"]), *_by_code(found["super_experts"], found["by_code"])])
    if not found["super_experts"]:
        why = "" if found["forming"] else ": no layer with experts forms a massive activation"
        return "not found", f"Rule super_expert finds none {where}{why}.{others}", ()
    rows = found["super_experts"]
    text = f"Rule super_expert finds {count(len(rows), 'super expert')} {where}: {_some(rows)}."
    return "found", text + others, tuple(map(_super_expert, rows[:IN_FULL]))


def _never(found: Part) -> str:
    return f" ({found['never_chosen']:,} of them never chosen)" if found["never_chosen"] else ""


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
    more = [f"{len(rows) - IN_FULL} more"] if len(rows) > IN_FULL else []
    return listing([*map(_named, rows[:IN_FULL]), *more])


def _formed(row: Part) -> str:
    name = "the shared expert" if row["part"] == "shared" else f"expert {row['expert']}"
    token = f"token {quoted(row['token_text'])}, " if row["token_text"] else ""
    return (
        f"Dimension {row['dim']} (x = {number(row['activation'])} at {token}position {row['token']} of sequence "
        f"{row['sequence']}): layer {row['layer']} adds {number(row['mlp_out'])}; {name} (weight "
        f"{number(row['weight'])}) gives {percent(row['share'])} of the MLP's output, the largest of "
        f"{count(row['parts'], 'part')}."
    )


def _compared(published: Sequence[Part]) -> Said:
    same = [row for row in published if row["super_expert"]]
    names = listing(_named(row) for row in published)
    return (
        "found" if same else "not found",
        f"Published as super experts of this model: {names} (Su et al. 2025); {len(same)} of {len(published)} "
        f"{'is' if len(same) == 1 else 'are'} among those found here.",
        (),
    )
