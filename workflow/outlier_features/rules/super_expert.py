"""Kind `super_expert`: routed experts whose outputs are far larger than others' and make massive activations."""

from dataclasses import dataclass
from typing import ClassVar

from outlier_features.rules.rule import SHARE, Rule, parameter
from outlier_features.wording import number, percent


@dataclass(frozen=True, kw_only=True)
class SuperExpert(Rule):
    """Routed experts that make massive activations: super experts (Su et al. 2025)."""

    percentile: float = parameter(
        "Percentile of all routed experts' largest abs(x) that it is above.",
        {"type": "number", "minimum": 0, "maximum": 100},
        99.5,
    )
    share: float = parameter("Share of the largest of them that it is above.", SHARE, 0.1)

    kind: ClassVar[str] = "super_expert"
    noun: ClassVar[str] = "super expert"
    source: ClassVar[str] = "Su et al. 2025"

    def criteria(self) -> str:
        return (
            f"largest |x| above the {number(self.percentile)}th percentile and {percent(self.share)} of the largest of "
            "all routed experts"
        )

    def meaning(self) -> str:
        return f"{self.titled()}: a routed expert with {self.criteria()}, in a layer that forms massive activations."
