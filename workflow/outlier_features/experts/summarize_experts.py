"""The experts' part of a run's summary."""

from typing import Any

import polars as pl

from outlier_features.experts.experts_schema import Ranking

_SUPER = ("layer", "part", "expert", "max_abs", "max_abs_weighted", "sequence", "token", "dim", "tokens_routed",
          "mean_weight", "max_abs_input", "neuron", "first_three_quarters_code", "published")  # fmt: skip


def experts_summary(
    experts: pl.DataFrame, routing: pl.DataFrame, balance: pl.DataFrame, massive: pl.DataFrame, ranking: Ranking
) -> dict[str, Any] | None:
    """What was found of the experts; None for a model without any.

    massive   the run's massive activations, for the text of their tokens
    """
    if not ranking.has_experts:
        return None
    passing = experts.filter(pl.col("above_percentile") & pl.col("above_tenth"))
    order = pl.col("max_abs"), pl.col("layer"), pl.col("expert")
    passing = passing.sort(order, descending=[True, False, False])
    routed = experts.filter(part="expert")
    known = experts.filter("published") if experts["published"].null_count() < len(experts) else None
    return {
        "sequences": ranking.experts_sequences,
        "active_parameters": ranking.active_parameters,
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
        "balance": {
            str(population): rows.drop("population").to_dicts()
            for (population,), rows in balance.group_by("population", maintain_order=True)
        },
        "kurtosis": {
            "layers": kurtosis_of_maxima(experts, "layer").to_dicts(),
            "experts": kurtosis_of_maxima(experts, "expert").to_dicts(),
        },
    }


def kurtosis_of_maxima(experts: pl.DataFrame, over: str) -> pl.DataFrame:
    """By `layer`, or by index of the `expert`: of how many routed experts that a position chose it is, and the Fisher
    kurtosis of their `max_abs`, mean((x - mean)^4) / mean((x - mean)^2)^2 - 3; null where all are alike.
    """
    off = pl.col("max_abs") - pl.col("max_abs").mean()
    square = off.pow(2).mean()
    return (
        experts.filter(part="expert")
        .drop_nulls("max_abs")
        .group_by(over)
        .agg(maxima=pl.len(), kurtosis=pl.when(square > 0).then(off.pow(4).mean() / square.pow(2) - 3))
        .sort(over)
    )


def _largest_parts(routing: pl.DataFrame, massive: pl.DataFrame) -> list[dict[str, Any]]:
    """Of each massive activation and layer that forms it the largest part, in the table's order."""
    place = ("sequence", "token", "dim")
    texts = massive.select(*place, "token_text").unique(place, keep="first", maintain_order=True)
    forming = routing.filter("forms_massive")
    parts = forming.with_columns(parts=pl.len().over("dim", "layer")).unique(
        ("dim", "layer"), keep="first", maintain_order=True
    )
    return parts.join(texts, on=place, how="left", maintain_order="left").to_dicts()
