"""Kind `systematic`: dims with large values in many layers and at many positions, as LLM.int8() selects them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from outlier_features.rules.rule import FLAG, POSITIVE, SCALE, SHARE, SITES, HitRule, parameter
from outlier_features.wording import listing, percent

if TYPE_CHECKING:
    import polars as pl

LAYER_READINGS = ("blocks", "sites_share")
POSITION_READINGS = ("union", "pooled", "affected")
_THRESHOLDS: dict[str, Any] = {"type": "array", "uniqueItems": True, "items": POSITIVE}


@dataclass(frozen=True, kw_only=True)
class Systematic(HitRule):
    """Dims with values of at least a threshold in enough layers and at enough positions of a sequence, after LLM.int8()
    (Dettmers et al. 2022)."""

    sites: tuple[str, ...] = parameter("Sites it is applied to, jointly.", {**SITES, "minItems": 1})
    threshold: float = parameter("abs(x) at least, on the scale.", POSITIVE, 6.0)
    scale: str | None = parameter(
        "What abs(x) is divided by first: nothing (null); `token_rms`, the RMS over the dims of its position; "
        "`layer_rms`, the RMS over the positions and dims of its sequence and layer; `gain`, the gain of the norm that "
        "makes the site.",
        SCALE,
        None,
    )
    layer_share: float = parameter("Layer share at least.", SHARE, 0.25)
    position_share: float = parameter("Position share at least.", SHARE, 0.06)
    layer_reading: str = parameter(
        "`blocks`: blocks with a hit / blocks; `sites_share`: site tensors with a hit / site tensors.",
        {"enum": [*LAYER_READINGS]},
        "blocks",
    )
    position_reading: str = parameter(
        "`union`: positions with a hit anywhere / positions; `pooled`: hits / (positions x site tensors); `affected`: "
        "mean share over the site tensors with a hit.",
        {"enum": [*POSITION_READINGS]},
        "union",
    )
    sensitivity: tuple[float, ...] | None = parameter(
        "Thresholds of the sensitivity table. null takes `sensitivity.thresholds` or, without a scale and on other "
        "sites than the inputs of linear layers, as many with the same ratios to its threshold as those have to 6; [] "
        "leaves the rule out.",
        {**_THRESHOLDS, "type": ["array", "null"]},
        None,
    )
    extract_sites: bool = parameter(
        "Extract its sites, listed in `sites` or not. false: it is applied to those that are extracted anyway.",
        FLAG,
        True,
    )
    follow_up: bool = parameter(
        "Look at the dims that it selects more closely: their shape over layers, norms' gains, surface and ablation.",
        FLAG,
        True,
    )

    kind: ClassVar[str] = "systematic"
    noun: ClassVar[str] = "outlier feature"

    @property
    def grid(self) -> tuple[float, ...]:
        return self.sensitivity or ()

    def passes(self) -> "pl.Expr":
        import polars as pl

        layers = pl.col(self.layer_reading) >= self.layer_share
        return layers & (pl.col(self.position_reading) >= self.position_share)

    def criteria(self) -> str:
        return (
            f"{self.reaches}, {self.layer_reading} >= {percent(self.layer_share)}, "
            f"{self.position_reading} >= {percent(self.position_share)}"
        )

    def meaning(self) -> str:
        from outlier_features.files.columns import READINGS

        return (
            f"{self.titled()}: a dimension passes in a sequence if it has hits, {self.reaches}, "
            f"in {percent(self.layer_share)} of the layers or more ({self.layer_reading}: "
            f"{READINGS[self.layer_reading]}) and at {percent(self.position_share)} of the positions or more "
            f"({self.position_reading}: {READINGS[self.position_reading]}), on {listing(self.sites)}"
            f"{' jointly' if len(self.sites) > 1 else ''}."
        )
