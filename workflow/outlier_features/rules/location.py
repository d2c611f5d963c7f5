"""Kind `location`: values over a threshold at locations (sequence, token, dim) that enough layers of a site hit."""

from dataclasses import dataclass
from typing import ClassVar

from outlier_features.model.bases import NORM_OUTPUTS
from outlier_features.rules.rule import FLAG, SHARE, SITES, Rule, parameter
from outlier_features.wording import number, percent


@dataclass(frozen=True, kw_only=True)
class Location(Rule):
    """Values over a threshold at locations (sequence, token, dim) that enough layers of a site hit, each site for
    itself. It needs the activations of all sequences at once: with `extract.keep_activations: false` it is applied to
    dumps alone."""

    threshold: float = parameter("abs(x) more than.", {"type": "number", "minimum": 0}, 6.0)
    inclusive: bool = parameter("abs(x) equal to the threshold is a hit too.", FLAG, False)
    layer_share: float = parameter(
        "Share of a site's layers that must hit a location; with 0 one is enough.", SHARE, 0.25
    )
    sites: tuple[str, ...] = parameter(
        "Sites it is applied to, of those that a run has; of a dump all.",
        SITES,
        NORM_OUTPUTS,
    )

    kind: ClassVar[str] = "location"
    noun: ClassVar[str] = "location"

    def criteria(self) -> str:
        sign = ">=" if self.inclusive else ">"
        return f"|x| {sign} {number(self.threshold)} in {percent(self.layer_share)} of the layers or more"

    def meaning(self) -> str:
        sign = ">=" if self.inclusive else ">"
        return (
            f"{self.titled()}: an occurrence, |x| {sign} {number(self.threshold)}, is kept if its location (sequence, "
            f"position, dimension) is hit in {percent(self.layer_share)} of the layers of the site or more, each site "
            "for itself; a dimension is one-sided if one sign holds at least 95 % of its kept occurrences."
        )
