"""A computed fact of a run, and its words at two lengths."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from outlier_features.dim_marks import Sentence, joined
from outlier_features.populations import over_population
from outlier_features.wording import count, some

Topic = Literal["found", "not found", "missing", "prediction", "effect"]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What was computed of a run.

    what         its sort, such as `selected`, `dim`, `largest`
    topic        the list of findings that has it
    short, full  its words, of which it makes sentences: as the short form says it, and as the findings do
    rule, sites, population   what its numbers stand on; empty where there is no such thing
    dim          the dim that it is about, if it is about one alone
    values       its numbers by name
    leading      whether the short form may tell it
    parts        facts of which it is the sum, as of its dims
    """

    what: str
    topic: Topic
    short: str
    full: str = ""
    rule: str = ""
    sites: str = ""
    population: str = ""
    dim: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    leading: bool = False
    parts: tuple["Fact", ...] = ()

    def __post_init__(self) -> None:
        for name in ("short", "full", "sites"):
            object.__setattr__(self, name, Sentence(getattr(self, name)))

    @property
    def text(self) -> str:
        return self.full or self.short

    @property
    def where(self) -> str:
        """Site, rule and population, for the line under its short words."""
        rule, population = self.rule and f"rule {self.rule}", self.population and over_population(self.population)
        return joined(filter(None, (self.sites, rule, population)), "; ")

    @property
    def flat(self) -> Iterator["Fact"]:
        """The fact, its parts and theirs."""
        yield self
        for part in self.parts:
            yield from part.flat


def summed(facts: Sequence[Fact], short: str) -> list[Fact]:
    """Several facts of one sort as parts of one that says what they have in common; one alone as it is."""
    if len(facts) < 2:
        return list(facts)
    first = facts[0]
    return [Fact(what=f"{first.what} by several", topic=first.topic, short=short, population=first.population,
                 parts=tuple(facts))]  # fmt: skip


def rest(left: Sequence[object], noun: str, topic: Topic) -> tuple[Fact, ...]:
    """A line for what a list leaves out, if it leaves out anything."""
    text = f"And {count(len(left), f'more {noun}')}: {some(left)}."
    return (Fact(what="rest", topic=topic, short=text, values={noun: len(left)}),) if left else ()
