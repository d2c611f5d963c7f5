"""The public tables: every column's name, type, unit and meaning, and how a table is written and read.

This is the one description of them: it goes into the files' own field metadata and makes `docs/tables.md`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from outlier_features.errors import DamagedFile
from outlier_features.files.artifacts import PROVENANCE, Provenance
from outlier_features.files.sealed_parquet import SEAL, metadata_of, open_parquet, write_parquet

_BATCH = 1 << 16  # rows


@dataclass(frozen=True)
class Column:
    name: str
    dtype: Any
    meaning: str
    unit: str = ""


@dataclass(frozen=True)
class Table:
    name: str
    row: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> dict[str, Any]:
        return {column.name: column.dtype for column in self.columns}


_POPULATION = Column(
    "population", pl.String, "`all` positions, or `without_first`: without the first and special tokens"
)
_RULE = Column("rule", pl.String, "the rule by which the row was selected")
_SITES = Column("sites", pl.String, "the sites the rule was applied to, joined by `+`")
_SITE = Column("site", pl.String, "where in a block the tensor is taken")
_SEQUENCE = Column("sequence", pl.UInt32, "index of the sequence, from 0")
_LAYER = Column("layer", pl.UInt16, "index of the block, from 0")
_TOKEN = Column("token", pl.UInt32, "position in the sequence, from 0")
_DIM = Column("dim", pl.UInt32, "hidden dimension, from 0")

READINGS = {
    "blocks": "blocks with a hit at any of the sites / blocks of the model; of a dump, the blocks it has",
    "sites_share": "site tensors with a hit / site tensors that the model has",
    "union": "positions with a hit at any site tensor / positions of the population",
    "pooled": "hits / (positions x site tensors)",
    "affected": "share of positions with a hit, averaged over the site tensors that have one",
}

HITS = Table(
    "hits",
    "a value at or above the site's floor; of a sequence in which these are more than `detect.max_density` of the "
    "values, none, but on resid_post those that rule massive may select",
    (
        _SEQUENCE, _LAYER, _TOKEN, _DIM,
        Column("value", pl.Float32, "the value itself, signed", "activation"),
        Column("excluded", pl.Boolean, "the position is the first of its sequence or a special token"),
    ),
)  # fmt: skip

SCALED_HITS = Table(
    "scaled_hits",
    "site, scale, sequence, layer, token, dim: a value that is large against a scale, by at least the smallest "
    "multiple that a rule or the sensitivity table applies; of one site and scale in the order of "
    "sequence, layer, token, dim",
    (
        _SITE,
        Column("scale", pl.String, "`token_rms`: the RMS of the position; `layer_rms`: that of the sequence and layer; "
               "`gain`: the gain of the norm whose output the site is"),
        _SEQUENCE, _LAYER, _TOKEN, _DIM,
        Column("value", pl.Float32, "the value itself, signed", "activation"),
        Column("scaled", pl.Float64, "value over the scale; by `layer_rms`, of the populations that the position "
               "belongs to, the one with the smaller RMS"),
        Column("excluded", pl.Boolean, "the position is the first of its sequence or a special token"),
    ),
)  # fmt: skip

_COUNTED_AT = Column("threshold", pl.Float64, "a hit's abs(x) is at least this (rounded to float32)", "activation")
PAIR_COUNTS = {
    "blocks_hit": (pl.Int64, "blocks with a hit at any of the sites", "blocks"),
    "tensors_hit": (pl.Int64, "site tensors with a hit", "site tensors"),
    "positions_hit": (pl.Int64, "positions with a hit of this dim at any site tensor", "positions"),
    "occurrences": (pl.Int64, "hits (layer, site, token) of this dim in this sequence", "values"),
    "positive": (pl.Int64, "hits above zero", "values"),
    "first_layer": (pl.UInt16, "first block with a hit", ""),
    "last_layer": (pl.UInt16, "last block with a hit", ""),
    "max_abs": (pl.Float64, "largest abs(x) among the hits", "activation"),
}

COUNTED_PAIRS = Table(
    "counted_pairs",
    "population, rule, sites, threshold, sequence, dim: every pair with a hit, in sequences whose hits at one of the "
    "sites are not listed",
    (
        _POPULATION, _RULE, _SITES, _COUNTED_AT, _SEQUENCE, _DIM,
        *(Column(name, dtype, meaning, unit) for name, (dtype, meaning, unit) in PAIR_COUNTS.items()),
    ),
)  # fmt: skip

COUNTED_POSITIONS = Table(
    "counted_positions",
    "site, threshold, sequence, token: every position with a value at or above the floor, in sequences whose hits at "
    "the site are not listed",
    (
        _SITE, _COUNTED_AT, _SEQUENCE, _TOKEN,
        Column("excluded", pl.Boolean, "the position is the first of its sequence or a special token"),
        Column("occurrences", pl.Int64, "hits (layer, dim) at this position", "values"),
        Column("max_abs", pl.Float64, "largest abs(x) at this position, a hit or not", "activation"),
    ),
)  # fmt: skip

LAYERS = Table(
    "layers",
    "population, site, layer",
    (
        _POPULATION, _SITE, _LAYER,
        *(Column(f"top{k}", pl.Float64, f"rank {k} of abs(x) in a sequence, averaged over sequences", "activation")
          for k in (1, 2, 3)),
        Column("median", pl.Float64, "median of abs(x) in a sequence, averaged over sequences", "activation"),
        Column("mean", pl.Float64, "mean of abs(x) over all values", "activation"),
        Column("max", pl.Float64, "largest abs(x) over all sequences", "activation"),
        Column("rms", pl.Float64, "root of the mean square over all values", "activation"),
        Column("kurtosis_flat_excess", pl.Float64, "Fisher kurtosis of all values of the site and layer (0 if normal)"),
        Column("kurtosis_token", pl.Float64, "Pearson kurtosis over a position's dims (3 if normal), their mean"),
        Column("kurtosis_channel_rms", pl.Float64, "mean_h(s_h^4) / mean_h(s_h^2)^2, s_h the RMS of dim h; 1..d"),
        Column("occurrences", pl.Int64, "values with abs(x) >= 6", "values"),
        Column("dims_hit", pl.Int64, "dims with a value with abs(x) >= 6", "dims"),
        Column("positions_hit", pl.Int64, "positions (sequence, token) with a value with abs(x) >= 6", "positions"),
        Column("positions", pl.Int64, "positions of the population over all sequences", "positions"),
    ),
)  # fmt: skip

DISTRIBUTION = Table(
    "distribution",
    "population, site, layer, bin of abs(x) that has a value: half an octave, low <= abs(x) < high",
    (
        _POPULATION, _SITE, _LAYER,
        Column("low", pl.Float64, "smallest abs(x) of the bin; 0 for that of the zeros", "activation"),
        Column("high", pl.Float64, "the next bin's smallest abs(x); of the zeros' bin 0, but 2^-126 where the "
               "activations are float32, whose smaller values are in it", "activation"),
        Column("values", pl.Int64, "values in the bin, exact; over the bins they sum to positions x dims", "values"),
    ),
)  # fmt: skip

PAIRS = Table(
    "pairs",
    "population, rule, sites, sequence, dim: every pair with a hit",
    (
        _POPULATION, _RULE, _SITES, _SEQUENCE, _DIM,
        *(Column(name, pl.Float64, meaning, "share") for name, meaning in READINGS.items()),
        Column("occurrences", pl.Int64, "hits (layer, site, token) of this dim in this sequence", "values"),
        Column("locations", pl.Int64, "positions with a hit of this dim at any site tensor", "positions"),
        Column("positive", pl.Int64, "hits above zero", "values"),
        Column("first_layer", pl.UInt16, "first block with a hit"),
        Column("last_layer", pl.UInt16, "last block with a hit"),
        Column("max_abs", pl.Float64, "largest abs(x) among the hits", "activation"),
        Column("passes", pl.Boolean, "the pair meets the rule's criteria"),
    ),
)  # fmt: skip

DIMS = Table(
    "dims",
    "population, rule, sites, dim: every dim with a hit",
    (
        _POPULATION, _RULE, _SITES, _DIM,
        Column("occurrences", pl.Int64, "hits (sequence, layer, site, token)", "values"),
        Column("locations", pl.Int64, "positions (sequence, token) with a hit at any site tensor", "positions"),
        Column("positive", pl.Int64, "hits above zero", "values"),
        Column("negative", pl.Int64, "hits below zero", "values"),
        Column("one_sided", pl.Boolean, "one sign holds at least 95 % of the hits"),
        Column("sequences", pl.Int64, "sequences with a hit", "sequences"),
        Column("sequences_passing", pl.Int64, "sequences in which the dim meets the rule's criteria", "sequences"),
        Column("selected", pl.Boolean, "at least one sequence passes"),
        Column("selected_majority", pl.Boolean, "more than half of all sequences pass"),
        *(Column(f"{name}_{how}", pl.Float64, f"{meaning}; {how} over the sequences with a hit", "share")
          for name, meaning in READINGS.items() for how in ("mean", "median")),
        Column("first_layer", pl.UInt16, "first block with a hit"),
        Column("last_layer", pl.UInt16, "last block with a hit"),
        Column("max_abs", pl.Float64, "largest abs(x) among the hits", "activation"),
        Column("kind", pl.String, "of a selected dim, by its mean union share over the passing sequences: "
               "`persistent` (>= 50 %), `massive` (<= 5 %), else `mixed`"),
        Column("step_up", pl.UInt16, "first block where max abs(x) on resid_post reaches half its maximum over blocks"),
        Column("step_down", pl.UInt16, "first later block below that half; null if it never falls"),
    ),
)  # fmt: skip

SENSITIVITY = Table(
    "sensitivity",
    "population, rule, layer reading, position reading, threshold, layer share, position share",
    (
        _POPULATION, _RULE, _SITES,
        Column("layer_reading", pl.String, "which layer share: `blocks` or `sites_share`"),
        Column("position_reading", pl.String, "which position share: `union`, `pooled` or `affected`"),
        Column("threshold", pl.Float64, "abs(x) at least", "activation"),
        Column("layer_share", pl.Float64, "layer share at least", "share"),
        Column("position_share", pl.Float64, "position share at least", "share"),
        Column("dims", pl.Int64, "dims that pass in at least one sequence", "dims"),
        Column("pairs", pl.Int64, "(sequence, dim) pairs that pass", "pairs"),
    ),
)  # fmt: skip

MASSIVE = Table(
    "massive",
    "rule, site, sequence, layer, token, dim: every massive activation",
    (
        _RULE, _SITE, _SEQUENCE, _LAYER, _TOKEN, _DIM,
        Column("value", pl.Float64, "the value itself, signed", "activation"),
        Column("median", pl.Float64, "median of abs(x) of that layer and sequence, all positions", "activation"),
        Column("ratio", pl.Float64, "abs(value) / median"),
        Column("massive_all", pl.Boolean, "meets the rule by the median over all positions"),
        Column("median_without_first", pl.Float64, "the same median over population `without_first`", "activation"),
        Column("ratio_without_first", pl.Float64, "abs(value) / median_without_first; null if excluded"),
        Column("massive_without_first", pl.Boolean, "is in `without_first` and meets the rule by its median"),
        Column("excluded", pl.Boolean, "the position is the first of its sequence or a special token"),
        Column("token_id", pl.Int64, "vocabulary id of the token"),
        Column("token_text", pl.String, "the text that the token covers; of a special token, its name"),
    ),
)  # fmt: skip

POSITIONS = Table(
    "positions",
    "population, site, token: every position that the population has in some sequence",
    (
        _POPULATION, _SITE,
        Column("rule", pl.String, "the rule whose hits are counted, whether or not it selects their dims; null: no "
               "rule is applied to the site"),
        Column("threshold", pl.Float64, "what a hit's abs(x) is at least, by rule massive more than (and at least so "
               "many medians); without a rule the site's floor", "activation"),
        _TOKEN,
        Column("sequences", pl.Int64, "sequences that have this position in the population", "sequences"),
        Column("sequences_hit", pl.Int64, "sequences with a hit at this position, in any layer", "sequences"),
        Column("occurrences", pl.Int64, "hits (sequence, layer, dim) at this position", "values"),
        Column("max_abs", pl.Float64, "largest abs(x) at this position, a hit or not; null where it is below the "
               "site's floor", "activation"),
    ),
)  # fmt: skip

EMERGENCE = Table(
    "emergence",
    "population, site, dim, layer: for every dim with a hit in either population, by a rule on a basis of d_model",
    (
        _POPULATION, _SITE, _DIM, _LAYER,
        Column("max_abs", pl.Float64, "largest abs(x)", "activation"),
        Column("low", pl.Float64, "smallest x", "activation"),
        Column("high", pl.Float64, "largest x", "activation"),
        Column("mean", pl.Float64, "mean x", "activation"),
        Column("rms", pl.Float64, "root of the mean square", "activation"),
    ),
)  # fmt: skip

LOSS = Table(
    "loss",
    "sequence; `nll` is null for a model without a causal language-model head",
    (
        _SEQUENCE,
        Column("tokens", pl.Int64, "tokens that are predicted: positions 1..T-1, padding left out", "tokens"),
        Column("bytes", pl.Int64, "UTF-8 bytes of the text of those tokens", "bytes"),
        Column("nll", pl.Float64, "sum of their negative log-likelihoods given what precedes", "nats"),
    ),
)  # fmt: skip

_RUNS = (
    Column("first", pl.String, "a run, `model/corpus`"),
    Column("second", pl.String, "another run"),
)

COMPARISON = Table(
    "comparison",
    "population, rule, sites, and two runs that both have these; dims that the rule selects, by rule `location` those "
    "with kept occurrences",
    (
        _POPULATION, _RULE, _SITES, *_RUNS,
        Column("dims_first", pl.Int64, "dims of the first run", "dims"),
        Column("dims_second", pl.Int64, "dims of the second run", "dims"),
        Column("common", pl.Int64, "dims in common", "dims"),
        Column("jaccard", pl.Float64, "dims in common / dims of either; null if neither has any"),
    ),
)  # fmt: skip

COMMON_DIMS = Table(
    "common_dims",
    "population, rule, sites, two runs and a dim that both have",
    (
        _POPULATION, _RULE, _SITES, *_RUNS, _DIM,
        Column("min_count", pl.Int64, "the smaller of its numbers of occurrences in the two runs", "values"),
    ),
)  # fmt: skip

NORMS = Table(
    "norms",
    "norm of the model that runs on text, in the model's order",
    (
        Column("module", pl.String, "path of the norm in the model"),
        Column("site", pl.String, "the sites that its output is, joined by `+`; null if it is none"),
        Column("layer", pl.UInt16, "index of the block that it lies in, from 0; null outside the blocks"),
        Column("residual", pl.Boolean, "its dims are those of the residual stream: its output is a site, or it lies "
               "outside the blocks and is d_model wide"),
        Column("kind", pl.String, "`rms`: divides by the root mean square; `layer`: takes the mean off first; null if "
               "undecided"),
        Column("parameterization", pl.String, "what the input is multiplied by, decided on a probe: `w`, `1 + w`, or "
               "`none`; null if undecided"),
        Column("reason", pl.String, "why kind or parameterization is undecided, else null"),
        Column("tensor", pl.String, "the checkpoint's tensor that holds w; null if none of that name has its values"),
        Column("shape", pl.String, "shape of w; null without one"),
        Column("size", pl.UInt32, "gains; of a norm without any, the values that are normalised together", "gains"),
        Column("dtype", pl.String, "in which the checkpoint holds w"),
        Column("exactly_one", pl.Int64, "gains that are exactly 1, told by the stored w", "gains"),
        Column("all_one", pl.Boolean, "every gain is exactly 1; null if there is none, or the form is undecided"),
        *(Column(name, pl.Float64, f"{name} of the gain (w, or 1 + w) over all dims")
          for name in ("min", "max", "mean", "median")),
        Column("bias_max_abs", pl.Float64, "largest abs(bias); null without one", "activation"),
        *(Column(f"others_{name}", pl.Float64, f"{meaning} of abs(gain) over the other dims: those that neither rule "
                 "dettmers nor rule massive selects in either population; null if not `residual`")
          for name, meaning in (("min", "minimum"), ("p05", "5 % quantile"), ("median", "median"),
                                ("p95", "95 % quantile"), ("max", "maximum"))),
    ),
)  # fmt: skip

GAINS = Table(
    "gains",
    "population, rule, dim, module: every dim that rule dettmers or massive selects, at every norm of residual dims",
    (
        _POPULATION, _RULE, _DIM,
        Column("module", pl.String, "path of the norm in the model"),
        Column("site", pl.String, "the sites that its output is, joined by `+`; null if it is none"),
        Column("layer", pl.UInt16, "index of the block that it lies in, from 0; null outside the blocks"),
        Column("gain", pl.Float64, "the gain at the dim (w, or 1 + w), signed"),
        Column("rank", pl.UInt32, "rank of abs(gain) among all dims, 1 the largest; equal ones share it"),
        Column("size", pl.UInt32, "dims of the norm", "dims"),
        Column("ratio", pl.Float64, "abs(gain) / `others_median` of norms.parquet; null if that is null or 0"),
    ),
)  # fmt: skip

SINKS = Table(
    "sinks",
    "layer, head, key: every key position and, where attention has one, the learned sink",
    (
        _LAYER,
        Column("head", pl.UInt16, "attention head of the queries, from 0"),
        Column("kv_head", pl.UInt16, "the KV head that it reads, from 0; null where each head has its own"),
        Column("token", pl.UInt32, "position of the key in the sequence, from 0; null for a learned sink"),
        Column("learned", pl.Boolean, "the key is a learned sink, which has no position"),
        Column("alpha", pl.Float64, "mean probability that the queries that can see the key give it, averaged over "
               "sequences", "probability"),
        Column("sink_rate", pl.Float64, "sequences in which that mean is above the threshold (0.3 unless configured) / "
               "sequences", "share"),
        Column("sequences", pl.Int64, "sequences that have the key; padding is none", "sequences"),
        Column("excluded", pl.Int64, "of these, sequences whose key is their first position or a special token",
               "sequences"),
    ),
)  # fmt: skip

_TARGET = Column("target_dim", pl.UInt32, "the dim that is traced")
_TRACED = (
    _TARGET,
    Column("sequence", pl.UInt32, "sequence of the dim's largest massive activation, or of its largest abs(x) on "
           "resid_post if it has none"),
    Column("traced_token", pl.UInt32, "position of that value in the sequence"),
    Column("selection", pl.String, "why it is traced: `massive` (rule massive selects it), `named` (by the config), "
           "`largest_rise` (rule massive selects none; its max abs(x) on resid_post is most above what enters the "
           "first block)"),
    _LAYER,
)  # fmt: skip

LIFECYCLE = Table(
    "lifecycle",
    "traced dim, layer, part: what makes the dim at its extreme, and what removes it",
    (
        *_TRACED,
        Column("token_id", pl.Int64, "vocabulary id of the token there"),
        Column("token_text", pl.String, "the text that the token covers; of a special token, its name"),
        Column("part", pl.String, "`resid_pre` (before the block), then what is added: `attn_out`, `mixer_out`, "
               "`mlp_out`, in post-LN models what a norm changes (`norm_after_attn`, `norm_after_mlp`), or `block` "
               "where these were not found or do not sum to what the block adds; `resid_post` is the sum"),
        Column("value", pl.Float64, "signed", "activation"),
        Column("share", pl.Float64, "of an added part: value / (resid_post - resid_pre); null if that is 0", "share"),
    ),
)  # fmt: skip

ORIGIN = Table(
    "origin",
    "traced dim, layer where it steps up or down, checkpoint of that layer's MLP, in the order of the computation",
    (
        *_TRACED,
        Column("step", pl.String, "`up` or `down` at the traced token; `run_up` or `run_down` over the whole run, "
               "where that is another layer"),
        Column("checkpoint", pl.String, "a site; in a gated MLP also `act_gate` and `mlp_up`, which make `mlp_act`"),
        Column("previous", pl.String, "the checkpoint that it is compared with; null for the first"),
        Column("dims", pl.Int64, "width of the tensor", "dims"),
        Column("max_abs", pl.Float64, "largest abs(x) over the sequence's positions and the dims", "activation"),
        Column("token", pl.UInt32, "position of that value"),
        Column("dim", pl.UInt32, "dim (or neuron) of that value"),
        Column("median_abs", pl.Float64, "median of abs(x) over the sequence's positions and the dims", "activation"),
        Column("ratio", pl.Float64, "max_abs / median_abs; null if the median is 0"),
        Column("change", pl.Float64, "max_abs - max_abs of the previous checkpoint", "activation"),
        Column("growth", pl.Float64, "max_abs / max_abs of the previous checkpoint"),
        Column("explosion", pl.Boolean, "the explosion point: the largest growth, and at least 2"),
        Column("traced_max_abs", pl.Float64, "largest abs(x) at the traced token alone", "activation"),
        Column("traced_dim", pl.UInt32, "dim (or neuron) of that value"),
        Column("traced_median_abs", pl.Float64, "median of abs(x) at the traced token alone", "activation"),
        Column("value", pl.Float64, "x of the traced dim at the traced token, where the tensor has the dims of the "
               "residual stream", "activation"),
        Column("share", pl.Float64, "of what the MLP adds to the stream: value / (resid_post - resid_pre)", "share"),
        Column("absent", pl.String, "why the model has no such tensor; its numbers are null then"),
    ),
)  # fmt: skip

ORIGIN_NEURONS = Table(
    "origin_neurons",
    "traced dim, layer, neuron of its MLP, and one row for the bias: what each writes into the dim at the traced token",
    (
        *_TRACED,
        Column("neuron", pl.UInt32, "index of the neuron; null for the bias of the MLP's last linear"),
        Column("activation", pl.Float64, "of the neuron (mlp_act) at the traced token", "activation"),
        Column("weight", pl.Float64, "W_down from the neuron to the dim"),
        Column("contribution", pl.Float64, "activation x weight; the bias itself", "activation"),
        Column("share", pl.Float64, "contribution / mlp_down at the traced token and dim; all rows sum to 1", "share"),
        Column("rank", pl.UInt32, "from 1, by abs(contribution); null for the bias"),
        Column("weights_only_rank", pl.UInt32, "from 1, by abs(weight), which knows no activation; null for the bias"),
    ),
)  # fmt: skip

ORIGIN_WEIGHTS = Table(
    "origin_weights",
    "traced dim, layer, linear layer of its MLP; the last of them is W_down",
    (
        _TARGET, _LAYER,
        Column("weight", pl.String, "path of the linear layer in the model"),
        Column("outputs", pl.Int64, "outputs of the layer"),
        Column("inputs", pl.Int64, "inputs of the layer"),
        Column("max_abs", pl.Float64, "largest abs(w)"),
        Column("max_output", pl.UInt32, "output of that weight"),
        Column("max_input", pl.UInt32, "input of that weight"),
        Column("mean_abs", pl.Float64, "mean abs(w)"),
        Column("singular_values", pl.List(pl.Float64), "of W_down: the largest, in order; else null"),
        Column("dim_shares", pl.List(pl.Float64), "of W_down: the traced dim's share of each of their output "
               "directions (its square in the left singular vector); else null", "share"),
    ),
)  # fmt: skip

_PART = Column(
    "part", pl.String, "`expert`: one that the router chooses; `shared`: the one that every token goes through"
)
_EXPERT = Column("expert", pl.UInt16, "index of the routed expert, from 0; null for the shared one")
_FORMS_MASSIVE = (
    "the layer's mlp_out has the sign and at least a tenth of the magnitude of {} massive activation at its position, "
    "up to the layer where that is largest"
)

EXPERTS = Table(
    "experts",
    "layer, part, expert; site expert_out, all positions; no row for a model without experts, or where they cannot be "
    "recorded",
    (
        _LAYER, _PART, _EXPERT,
        Column("max_abs", pl.Float64, "largest abs(x) of its down projection's output, before the router's weight; "
               "null if no token chose it", "activation"),
        Column("max_abs_weighted", pl.Float64, "largest abs(x) of that output times the router's weight, or the shared "
               "expert's gate", "activation"),
        Column("sequence", pl.UInt32, "sequence of `max_abs`"),
        Column("token", pl.UInt32, "position of `max_abs`"),
        Column("dim", pl.UInt32, "hidden dimension of `max_abs`"),
        Column("tokens_routed", pl.Int64, "positions that chose it", "positions"),
        Column("mean_weight", pl.Float64, "mean over these of the router's weight, or of the gate"),
        Column("above_percentile", pl.Boolean, "max_abs > 99.5th percentile of all routed experts' max_abs (linear)"),
        Column("above_tenth", pl.Boolean, "max_abs > a tenth of the largest of all routed experts' max_abs"),
        Column("forms_massive", pl.Boolean, _FORMS_MASSIVE.format("a dim's largest")),
        Column("first_three_quarters", pl.Boolean, "layer < 0.75 x blocks of the model"),
        Column("super_expert", pl.Boolean, "above_percentile, above_tenth and forms_massive (the text of Su et al. "
               "2025)"),
        Column("above_percentile_code", pl.Boolean, "max_abs > 99.5th percentile (linear) of all experts, shared ones "
               "too, of the layers of `first_three_quarters_code`, where one that no token chose counts as 0"),
        Column("above_tenth_code", pl.Boolean, "max_abs > the largest of these // 10 (rounded down)"),
        Column("first_three_quarters_code", pl.Boolean, "layer < 0.75 x blocks of the model, rounded half to even"),
        Column("super_expert_code", pl.Boolean, "above_percentile_code, above_tenth_code and first_three_quarters_code "
               "(the code of Su et al. 2025)"),
        Column("published", pl.Boolean, "published as a super expert of this model (workflow/published); null if "
               "nothing was published of it"),
    ),
)  # fmt: skip

ROUTING = Table(
    "routing",
    "dim, layer, part, expert: a part of the MLP's output at the largest massive activation of the dim, in the layers "
    "that form it and where the dim steps up",
    (
        _LAYER, _SEQUENCE, _TOKEN, _DIM, _PART, _EXPERT,
        Column("weight", pl.Float64, "the router's weight, or the shared expert's gate (1 without one)"),
        Column("value", pl.Float64, "the part's down-projection output at this position and dim, signed", "activation"),
        Column("weighted", pl.Float64, "weight x value; over the parts they sum to the MLP's output", "activation"),
        Column("share", pl.Float64, "weighted / the MLP's output there", "share"),
        Column("whole", pl.Float64, "the MLP's output there, before a post-norm", "activation"),
        Column("mlp_out", pl.Float64, "what the MLP adds to the residual stream there", "activation"),
        Column("activation", pl.Float64, "the massive activation on resid_post, in the layer where it is largest, "
               "signed", "activation"),
        Column("forms_massive", pl.Boolean, _FORMS_MASSIVE.format("this")),
        Column("steps_up", pl.Boolean, "the layer is the dim's step-up layer"),
    ),
)  # fmt: skip

SUPER_WEIGHTS = Table(
    "super_weights",
    "round of the search: the weight of an MLP's last linear layer that was found in it and then set to zero",
    (
        Column("round", pl.UInt16, "round of the search, from 1; the weights of earlier rounds are zero in it"),
        _LAYER,
        Column("module", pl.String, "path of the linear layer in the model"),
        Column("row", pl.UInt32, "the weight's output: dim of the spike on mlp_down"),
        Column("col", pl.UInt32, "the weight's input: neuron of the spike on mlp_act"),
        Column("value", pl.Float64, "the weight", "weight"),
        Column("mlp_act", pl.Float64, "value with the largest abs(x) on mlp_act in this round", "activation"),
        Column("mlp_act_token", pl.UInt32, "its position in the sequence that was run"),
        Column("mlp_down", pl.Float64, "value with the largest abs(x) on mlp_down in this round", "activation"),
        Column("mlp_down_token", pl.UInt32, "its position in the sequence that was run"),
        Column("published", pl.Boolean, "the weight is among the model's published coordinates; null without any"),
    ),
)  # fmt: skip

SURFACE = Table(
    "surface",
    "cell of neighbouring tokens and dims, in the sequence and layer of the run's largest abs(x): on resid_post, or on "
    "the site that has it where the run lacks resid_post; 256 x 512 cells at most",
    (
        _SITE, _LAYER, _SEQUENCE,
        Column("token_first", pl.UInt32, "first position of the cell; excluded ones and the tokens with the largest "
               "abs(x) are not pooled (up to 32 each)"),
        Column("token_last", pl.UInt32, "last position of the cell"),
        Column("excluded", pl.Boolean, "the cell's positions are those between that are the first of the sequence or "
               "special tokens; else those that are not. A cell has no others, and no padding"),
        Column("dim_first", pl.UInt32, "first dim of the cell; up to 64 selected dims and the 16 with the largest "
               "abs(x) of each kind of positions are not pooled"),
        Column("dim_last", pl.UInt32, "last dim of the cell"),
        Column("selected", pl.Boolean, "the cell is of one dim that rule dettmers or massive (on attn_heads "
               "dettmers_heads) selects in any population"),
        Column("max_abs", pl.Float32, "largest abs(x) in the cell", "activation"),
        Column("value", pl.Float32, "the x that has it, signed", "activation"),
        Column("token", pl.UInt32, "its position, the first of equals"),
        Column("dim", pl.UInt32, "its dim, the first of equals at that position"),
        Column("token_text", pl.String, "of a cell of one position: the text that the token covers; of a special "
               "token, its name"),
    ),
)  # fmt: skip

_VARIANT = Column("variant", pl.UInt16, "index of the variant of the model, from 0, the unchanged model")
_TOP1 = Column("top1_probability", pl.Float64, "largest probability of any token, mean over predicted tokens", "share")

ABLATION = Table(
    "ablation",
    "variant of the model: what was set where to which value, and how well it then predicts the sample",
    (
        _VARIANT,
        Column("target", pl.String, "`baseline` (nothing), `dims` (selected), `weight` (super weights) or `random`"),
        Column("rule", pl.String, "the rule that selected the dims or found the weights; null for `random`"),
        Column("site", pl.String, "where dims are set; `mlp_down.weight` for weights"),
        Column("layers", pl.String, "block of each dim or weight, joined by `+`; null: in every block"),
        Column("dims", pl.String, "the dims, joined by `+`; of a weight, the row"),
        Column("cols", pl.String, "columns of the weights, joined by `+`"),
        Column("number", pl.UInt32, "dims or weights that are set", "dims or weights"),
        Column("seed", pl.UInt32, "of a random draw; null otherwise"),
        Column("positions", pl.String, "where: `excluded` (first of a sequence, special tokens), `rest` or `all`"),
        Column("value", pl.String, "`zero`, or `mean`: of each dim in the unchanged model over those positions"),
        Column("tokens", pl.Int64, "predicted tokens", "tokens"),
        Column("nll", pl.Float64, "their mean negative log-likelihood; null where it is not finite", "nats per token"),
        Column("perplexity", pl.Float64, "exp(nll); null where it is not finite"),
        Column("bits_per_byte", pl.Float64, "the same per UTF-8 byte of their text", "bits per byte"),
        _TOP1,
    ),
)  # fmt: skip

ABLATION_SEQUENCES = Table(
    "ablation_sequences",
    "variant, sequence: the sums and means of `ablation` for each sequence by itself",
    (
        _VARIANT, _SEQUENCE,
        Column("tokens", pl.Int64, "predicted tokens", "tokens"),
        Column("bytes", pl.Int64, "UTF-8 bytes of their text", "bytes"),
        Column("nll", pl.Float64, "sum of their negative log-likelihoods; null where it is not finite", "nats"),
        _TOP1,
    ),
)  # fmt: skip

COSTS = Table(
    "costs",
    "rule, from Snakemake's benchmark files of all jobs that ever ran into these results, of each its last run",
    (
        Column("rule", pl.String, "name of the rule"),
        Column("jobs", pl.Int64, "jobs with a benchmark file", "jobs"),
        Column("seconds", pl.Float64, "wall time, all jobs together", "s"),
        Column("seconds_max", pl.Float64, "wall time of the longest job", "s"),
        Column("measured", pl.Int64, "jobs that ran long enough for the numbers below, which Snakemake samples: every "
               "half second at first, later every 30 s", "jobs"),
        Column("cpu_seconds", pl.Float64, "CPU time, user and system, all measured jobs together", "s"),
        Column("max_rss", pl.Float64, "largest resident memory of a job", "MiB"),
        Column("read", pl.Float64, "read from storage, what was cached not counted", "MiB"),
        Column("written", pl.Float64, "written to storage", "MiB"),
        Column("output_bytes", pl.Int64, "size of the rule's outputs that are there; what later rules removed is not",
               "bytes"),
    ),
)  # fmt: skip

PUBLIC = (
    LAYERS, DISTRIBUTION, DIMS, PAIRS, SENSITIVITY, MASSIVE, POSITIONS, EMERGENCE, SURFACE, NORMS, GAINS, SINKS,
    LIFECYCLE, ORIGIN, ORIGIN_NEURONS, ORIGIN_WEIGHTS, EXPERTS, ROUTING, SUPER_WEIGHTS, ABLATION, ABLATION_SEQUENCES,
    LOSS, HITS, SCALED_HITS, COUNTED_PAIRS, COUNTED_POSITIONS, COMPARISON, COMMON_DIMS, COSTS,
)  # fmt: skip


def to_arrow(frame: pl.DataFrame, table: Table, provenance: Mapping[str, Any]) -> pa.Table:
    """`frame` with the columns, types and field metadata of `table`, in its order."""
    arrow = frame.select(pl.col(name).cast(dtype) for name, dtype in table.schema.items()).to_arrow()
    fields = [
        field.with_type(pa.string()).with_metadata({"meaning": column.meaning, "unit": column.unit})
        if pa.types.is_large_string(field.type) or pa.types.is_string_view(field.type)
        else field.with_metadata({"meaning": column.meaning, "unit": column.unit})
        for field, column in zip(arrow.schema, table.columns, strict=True)
    ]
    metadata = {"table": table.name, "row": table.row, PROVENANCE: json.dumps(provenance), **SEAL}
    return arrow.cast(pa.schema(fields, metadata))


def schema_of(table: Table) -> pa.Schema:
    """Names and types of a table's columns, as its files have them."""
    return to_arrow(pl.DataFrame(schema=table.schema), table, {}).schema


def write_table(path: str | Path, frame: pl.DataFrame, table: Table, provenance: Mapping[str, Any]) -> None:
    write_parquet(path, to_arrow(frame, table, provenance))


def read_table(path: str | Path, table: Table) -> tuple[pl.DataFrame, Provenance]:
    """The rows of a table that this package wrote, and their provenance.

    Raises `InputError` where the file is damaged or is another table.
    """
    with _reading(path, table), open_parquet(path) as file:
        provenance = _checked(file, path, table)
        frame = pl.from_arrow(file.read())
    assert isinstance(frame, pl.DataFrame)
    return frame, provenance


def read_batches(path: str | Path, table: Table) -> Iterator[pl.DataFrame]:
    """The rows as `read_table` gives them, some at a time, first none: memory does not grow with the table."""
    yield pl.DataFrame(schema=table.schema)
    with _reading(path, table), open_parquet(path) as file:
        _checked(file, path, table)
        for batch in file.iter_batches(_BATCH):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame


def provenance_of(path: str | Path, table: Table) -> Provenance:
    """Where the rows come from, without them."""
    with _reading(path, table), open_parquet(path) as file:
        return _checked(file, path, table)


@contextmanager
def _reading(path: str | Path, table: Table) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DamagedFile(path, f"expected the Parquet table {table.name!r}, found {error}") from error


def _checked(file: pq.ParquetFile, path: str | Path, table: Table) -> Provenance:
    metadata, columns = metadata_of(file), file.schema_arrow.names
    found, provenance = metadata["table"], Provenance(path, metadata[PROVENANCE])
    if found != table.name or columns != list(table.schema):
        raise DamagedFile(path, f"expected the table {table.name!r}, found {found!r} with columns {columns}")
    return provenance
