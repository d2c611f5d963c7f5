"""Kind `super_weight`: single weights that make a spike between the two sides of an MLP's last linear layer."""

from dataclasses import dataclass
from typing import ClassVar

from outlier_features.rules.rule import POSITIVE, Rule, parameter
from outlier_features.wording import number


@dataclass(frozen=True, kw_only=True)
class SuperWeight(Rule):
    """Single weights of the MLPs' last linear layers: super weights (Yu et al. 2024)."""

    threshold: float = parameter(
        "abs(x) more than, of the largest value on mlp_act and of that on mlp_down.", POSITIVE, 50.0
    )
    rounds: int = parameter(
        "Rounds of the search at most; each finds one weight.", {"type": "integer", "minimum": 1}, 20
    )

    kind: ClassVar[str] = "super_weight"
    noun: ClassVar[str] = "super weight"
    source: ClassVar[str] = "Yu et al. 2024"

    def criteria(self) -> str:
        return f"largest |x| > {number(self.threshold)} on both mlp_act and mlp_down"

    def meaning(self) -> str:
        return (
            f"{self.titled()}: the weight between the neuron with the largest |x| on mlp_act and the dimension with "
            f"the largest |x| on mlp_down of a layer, both above {number(self.threshold)}; it is set to zero and the "
            "search goes on."
        )
