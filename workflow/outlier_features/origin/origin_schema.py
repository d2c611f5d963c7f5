"""The tables that rule trace_origin writes."""

import polars as pl

from outlier_features.files.columns import LAYER
from outlier_features.files.tables import Column, Table

_TARGET = Column("target_dim", pl.UInt32, "the dim that is traced")

_PLACE = (
    _TARGET,
    Column("sequence", pl.UInt32, "sequence of the dim's largest massive activation, or of its largest abs(x) on "
           "resid_post if it has none"),
    Column("traced_token", pl.UInt32, "position of that value in the sequence"),
    Column("selection", pl.String, "why it is traced: `massive` (a rule that lists massive activations selects it), "
           "`named` (by the config), `largest_rise` (such a rule selects none; its max abs(x) on resid_post is most "
           "above what enters the first block)"),
)  # fmt: skip
_TRACED = (*_PLACE, LAYER)

LIFECYCLE = Table(
    "lifecycle",
    "traced dim, layer, part: what makes the dim at its extreme, and what removes it",
    (
        *_TRACED,
        Column("token_id", pl.Int64, "vocabulary id of the token there"),
        Column("token_text", pl.String, "the text that the token covers; of a special token, its name"),
        Column("part", pl.String, "`resid_pre` (before the block), then what is added: `attn_out`, `mixer_out`, "
               "`mlp_out`, of an MLP with experts `routed_out` and `shared_out` (what these write, weighted), in "
               "post-LN models what a norm changes (`norm_after_attn`, `norm_after_mlp`), or `block` where these were "
               "not found or do not sum to what the block adds; `resid_post` is the sum"),
        Column("value", pl.Float64, "signed", "activation"),
        Column("share", pl.Float64, "of an added part: value / (resid_post - resid_pre); null if that is 0", "share"),
    ),
)  # fmt: skip

ORIGIN_SHARES = Table(
    "origin_shares",
    "traced dim, part: what it is made of at the traced token, after the layer where its abs(x) is largest there",
    (
        *_PLACE,
        Column("layer", pl.UInt16, "the layer after which abs(x) is largest; parts are summed up to it"),
        Column("part", pl.String, "`embeddings` (what enters the first block), the parts of `lifecycle` summed over "
               "the layers, `between_blocks` (what the model does to the stream between them; no row where that is "
               "nothing), `rounding` (what the layers' rounding sums up to)"),
        Column("value", pl.Float64, "signed; over the parts they sum to resid_post there", "activation"),
        Column("share", pl.Float64, "value / resid_post; null if that is 0", "share"),
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
        _TARGET, LAYER,
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
        Column("projection", pl.Float64, "of W_down: mlp_act at the traced token, projected on the first right "
               "singular vector, signed so that it writes the dim above 0; else null", "activation"),
        Column("projection_share", pl.Float64, "what it writes to the dim / mlp_down there", "share"),
        Column("slope", pl.Float64, "of the line through mlp_down of the dim by the projection, over the positions of "
               "the traced sequence"),
        Column("r2", pl.Float64, "of that line, R^2"),
    ),
)  # fmt: skip
