"""Tables of the comparison's page: every run, rule and population, with what is compared first; and when dims first
pass."""

from typing import Any

import polars as pl

from outlier_features.compare.first_steps_schema import FIRST_STEPS
from outlier_features.compare.models_schema import MODELS
from outlier_features.report.page_data import described, packed

# In the order of the table; the others stand in the whole one below it.
_FIRST = (
    "run", "step", "rule", "population", "parameters", "active_parameters", "dtype", "perplexity", "bits_per_byte",
    "dims", "pairs", "layer_share_mean", "layer_share_mean_low", "layer_share_mean_high", "position_share_mean",
    "position_share_mean_low", "position_share_mean_high", "magnitude_median", "largest", "largest_layer",
    "largest_token_text", "sink_rate", "super_weights", "ablation_nats", "published_dims", "dims_difference",
    "published_sweep_pairs", "sweep_pairs_difference",
)  # fmt: skip
_WITHOUT_SCRIPTS = 200


def compared_table(models: pl.DataFrame) -> dict[str, Any]:
    """Rows for a page without scripts, and the table packed twice: what is read first, and all of it."""
    meant = described(MODELS)
    links = {"run": meant["run"] | {"link": True}}
    filters = [name for name in ("rule", "population") if models[name].n_unique() > 1]
    whole = meant | links
    first = [name for name in _FIRST if name != "step" or models[name].is_not_null().any()]
    return {
        "rows": models.head(_WITHOUT_SCRIPTS).to_dicts(),
        "first": packed(models.select(first), {name: whole[name] for name in first}, filters=filters),
        "whole": packed(models, whole, filters=filters),
    }


def first_steps_table(steps: pl.DataFrame) -> dict[str, Any]:
    filters = [name for name in ("model", "corpus", "rule", "population") if steps[name].n_unique() > 1]
    return {
        "rows": steps.head(_WITHOUT_SCRIPTS).to_dicts(),
        "packed": packed(steps, described(FIRST_STEPS), filters=filters),
    }
