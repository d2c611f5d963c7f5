"""Which rules load the model: each of their jobs does, once."""

from collections.abc import Mapping
from typing import Any

from outlier_features.run.config import turned_off
from outlier_features.run.stages import STAGES, Stage


def rules_that_load(config: Mapping[str, Any], *, has_experts: bool, has_loss: bool) -> list[str]:
    """Rules of which each job loads the model; the first has a job a chunk, each other one a run. That of
    `prune_experts` does so too where there are super experts, which is not known before.

    config        resolved
    has_experts   a model without is not loaded to rank them
    has_loss      of the next token: without one no ablation, knock-out or quantized model can be measured
    """
    needless = {
        "extract_activations": not config["extract"]["keep_activations"],
        "detect_in_passes": config["extract"]["keep_activations"],
        "rerun_largest": config["extract"]["keep_activations"],
        "rank_experts": not has_experts,
        "prune_experts": True,
        "record_examples": turned_off(config, "neurons") is not None,
        "ablate_dims": not has_loss and turned_off(config, "super_weights") is not None,
        "knock_out": not (has_loss and config["ablate"]["knock_outs"]),
        "quantize_model": not (has_loss and config["quantize"]["losses"]),
        "attribute_logits": not config["gallery"]["attribution"],
    }
    return [
        rule for rule, stage in STAGES.items() if stage.runs_model and not needless.get(rule) and _is_on(config, stage)
    ]


def _is_on(config: Mapping[str, Any], stage: Stage) -> bool:
    return not stage.analyses or any(turned_off(config, one) is None for one in stage.analyses)
