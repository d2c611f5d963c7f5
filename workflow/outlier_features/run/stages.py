"""The stages of a run: the rules of which a run has a job, or one for each of its chunks."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stage:
    """A rule of the workflow.

    files        what a job leaves in the directory of its run, by `{site}` and `{chunk}` where it has them
    of           what has it: a run of a model, a dump, or any
    analyses     that it is for, of `missing.ANALYSES`; none where it is the run itself
    runs_model   its job loads the model, and its time goes with the forward pass; else with the values of activations
    kept         its files stay when the run is done; else they may be removed
    """

    rule: str
    files: tuple[str, ...]
    of: Literal["model", "dump", "any"] = "any"
    analyses: tuple[str, ...] = ()
    runs_model: bool = False
    kept: bool = True

    @property
    def has_chunks(self) -> bool:
        return any("{chunk}" in name for name in self.files)


_DETECTION = (
    "hits/{site}/{chunk}.parquet",
    "scaled_hits/{chunk}.parquet",
    "counted_pairs/{chunk}.parquet",
    "counted_positions/{chunk}.parquet",
    "statistics/{chunk}.safetensors",
)
_LOSSES = "losses/{chunk}.safetensors"
_NEURONS = "neurons/{chunk}.safetensors"
_CHANNELS = "channels/{chunk}.safetensors"

# In an order in which they can run.
STAGES = {
    stage.rule: stage
    for stage in (
        Stage("tokenize_corpus", ("tokens.safetensors", "texts.parquet"), "model"),
        Stage("describe_dump", ("tokens.safetensors", "texts.parquet"), "dump"),
        Stage(
            "extract_activations",
            ("activations/{chunk}.safetensors", _LOSSES, _NEURONS, _CHANNELS),
            "model",
            runs_model=True,
            kept=False,
        ),
        Stage(
            "detect_in_passes",
            (*_DETECTION, _LOSSES, _NEURONS, _CHANNELS),
            "model",
            runs_model=True,
            kept=False,
        ),
        Stage("detect_outliers", _DETECTION, kept=False),
        Stage(
            "summarize_layers",
            ("statistics.safetensors", "layers.parquet", "distribution.parquet", "site_positions.parquet"),
        ),
        Stage("locate_outliers", ("locations.json",)),
        Stage(
            "filter_systematic", ("pairs.parquet", "sensitivity.parquet", "massive.parquet", "positions.parquet")
        ),
        Stage("analyze_emergence", ("dims.parquet", "emergence.parquet")),
        # Its own file is removed once the surface is recorded.
        Stage("rerun_largest", ("surface.parquet",), "model", ("surface",), runs_model=True),
        Stage("record_surface", ("surface.parquet",), analyses=("surface",)),
        Stage("measure_loss", ("loss.parquet", "token_losses.safetensors"), "model", ("loss",)),
        Stage(
            "rank_neurons",
            ("neurons.parquet", "neuron_statistics.parquet", "neurons.safetensors"),
            "model",
            ("neurons",),
        ),
        Stage("merge_channels", ("channel_stats.safetensors", "prefix_tokens.parquet"), "model", ("channels",)),
        Stage("check_norms", ("norms.parquet", "gains.parquet"), "model", ("norms",)),
        Stage("check_dump_norms", ("norms.parquet", "gains.parquet"), "dump"),
        Stage("map_attention", ("sinks.parquet", "attention.safetensors"), "model", ("attention_maps",), True),
        Stage(
            "trace_origin",
            (
                "lifecycle.parquet", "origin_shares.parquet", "origin.parquet", "origin_neurons.parquet",
                "origin_weights.parquet", "origin.txt",
            ),
            "model",
            ("origin",),
            runs_model=True,
        ),
        Stage("rate_triggers", ("triggers.parquet",), "model"),
        Stage(
            "rank_experts",
            ("experts.parquet", "routing.parquet", "expert_load.parquet", "expert_balance.parquet"),
            "model",
            ("experts",),
            runs_model=True,
        ),
        Stage(
            "prune_experts",
            ("expert_ablation.parquet", "expert_ablation_sequences.parquet"),
            "model",
            ("expert_ablation",),
            runs_model=True,
        ),
        Stage(
            "ablate_dims",
            ("super_weights.parquet", "ablation.parquet", "ablation_sequences.parquet"),
            "model",
            ("super_weights", "ablation"),
            runs_model=True,
        ),
        Stage(
            "quantize_sites",
            ("quantization.parquet", "weight_outliers.parquet"),
            "model",
            ("quantization",),
            runs_model=True,
        ),
        Stage("quantize_dump", ("quantization.parquet",), "dump", ("quantization",)),
        Stage(
            "record_examples",
            ("gallery_neurons.parquet", "gallery_examples.parquet", "gallery_values.parquet", "gallery_dims.parquet"),
            "model",
            ("gallery",),
            runs_model=True,
        ),
        Stage(
            "attribute_logits",
            ("logit_attribution.parquet", "logit_attribution_tokens.parquet"),
            "model",
            ("attribution",),
            runs_model=True,
        ),
        Stage(
            "knock_out",
            ("knock_outs.parquet", "knock_out_dims.parquet", "spikes.parquet"),
            "model",
            ("knock_outs",),
            runs_model=True,
        ),
        Stage(
            "quantize_model",
            (
                "quantization_loss.parquet", "quantization_loss_sequences.parquet", "quantization_sensitivity.parquet",
                "quantization_signals.parquet", "prefix_trial.parquet",
            ),
            "model",
            ("quantization_losses",),
            runs_model=True,
        ),
        Stage("summarize_run", ("summary.json",)),
        Stage("write_mask", ("mask.json",)),
        Stage(
            "export_quantization",
            (
                "quantization/smoothquant_scales.safetensors", "quantization/imatrix.gguf",
                "quantization/llmcompressor_recipe.yaml", "quantization/bitsandbytes.json", "quantization/prefix.json",
            ),
            "model",
            ("channels",),
        ),
    )
}  # fmt: skip
