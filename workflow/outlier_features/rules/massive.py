"""Kind `massive`: single values far above a threshold and far above the median around them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from outlier_features.rules.rule import FLAG, POSITIVE, SITE, HitRule, parameter
from outlier_features.wording import number

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class Massive(HitRule):
    """Values above a threshold that are at least a multiple of the median of their layer and sequence: massive
    activations (Sun et al. 2024)."""

    site: str = parameter("Site it is applied to.", SITE, "resid_post")
    threshold: float = parameter("abs(x) more than.", POSITIVE, 100.0)
    ratio: float = parameter("abs(x) at least this many medians of its layer and sequence.", POSITIVE, 1000.0)
    extract_sites: bool = parameter(
        "Extract its site, listed in `sites` or not. false: it is applied if the site is extracted anyway.", FLAG, True
    )
    follow_up: bool = parameter(
        "Look at the dims that it selects more closely: origin, shape over layers, norms' gains, surface and ablation.",
        FLAG,
        True,
    )

    kind: ClassVar[str] = "massive"
    noun: ClassVar[str] = "massive activation"
    source: ClassVar[str] = "Sun et al. 2024"
    lists_hits: ClassVar[bool] = True

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.site,)

    @property
    def counts_suffice(self) -> bool:
        return False

    @property
    def listed_above(self) -> tuple[float, float]:
        return self.threshold, self.ratio

    def is_hit(self, threshold: float) -> "pl.Expr":
        import polars as pl

        size = pl.col("size").cast(pl.Float64)
        return (size > threshold) & (size >= self.ratio * pl.col("median"))

    def criteria(self) -> str:
        return f"|x| > {number(self.threshold)} and |x| >= {number(self.ratio)} medians"

    def meaning(self) -> str:
        return (
            f"{self.titled()}: a value on {self.site} is a massive activation if |x| > {number(self.threshold)} and "
            f"|x| >= {number(self.ratio)} times the median |x| of its layer and sequence, a median over the positions "
            "of the population."
        )
