"""Which rules load the model: each of their jobs does, once."""

from collections.abc import Mapping
from typing import Any

from outlier_features.run.config import turned_off

# By rule the analysis that it is for; None where it is the run itself.
_ANALYSIS = {
    "extract_activations": None,
    "detect_in_passes": None,
    "rerun_largest": "surface",
    "map_attention": "attention_maps",
    "trace_origin": "origin",
    "rank_experts": "experts",
    "find_super_weights": "super_weights",
    "ablate_dims": "ablation",
    "knock_out": "knock_outs",
}


def rules_that_load(config: Mapping[str, Any], *, has_experts: bool, has_loss: bool) -> list[str]:
    """Rules of which each job loads the model; the first has a job a chunk, each other one a run. That of
    `prune_experts` does so too where there are super experts, which is not known before.

    config        resolved
    has_experts   a model without is not loaded to rank them
    has_loss      of the next token: without one no ablation and no knock-out can be measured
    """
    needless = {
        "extract_activations": not config["extract"]["keep_activations"],
        "detect_in_passes": config["extract"]["keep_activations"],
        "rerun_largest": config["extract"]["keep_activations"],
        "rank_experts": not has_experts,
        "ablate_dims": not has_loss,
        "knock_out": not (has_loss and config["ablate"]["knock_outs"]),
    }
    return [
        rule
        for rule, analysis in _ANALYSIS.items()
        if not needless.get(rule) and (analysis is None or turned_off(config, analysis) is None)
    ]
