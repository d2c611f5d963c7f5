"""The tables that rule rank_experts writes."""

from dataclasses import dataclass

import polars as pl

from outlier_features.files.columns import DIM, LAYER, POPULATION, SEQUENCE, TOKEN
from outlier_features.files.facts import Facts
from outlier_features.files.tables import Column, Table


@dataclass(frozen=True)
class Ranking(Facts):
    """What was ranked: of a model without experts both tables are empty.

    experts_sequences   the run's first so many gave the maxima
    experts_targets     massive activations that were taken apart
    active_parameters   those that a token uses, without the experts that its router does not choose
    """

    has_experts: bool
    experts_sequences: int
    experts_targets: int
    active_parameters: int


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
        LAYER, _PART, _EXPERT,
        Column("max_abs", pl.Float64, "largest abs(x) of its down projection's output, before the router's weight; "
               "null if no token chose it", "activation"),
        Column("max_abs_weighted", pl.Float64, "largest abs(x) of that output times the router's weight, or the shared "
               "expert's gate", "activation"),
        Column("sequence", pl.UInt32, "sequence of `max_abs`"),
        Column("token", pl.UInt32, "position of `max_abs`"),
        Column("dim", pl.UInt32, "hidden dimension of `max_abs`"),
        Column("tokens_routed", pl.Int64, "positions that chose it", "positions"),
        Column("mean_weight", pl.Float64, "mean over these of the router's weight, or of the gate"),
        Column("max_abs_input", pl.Float64, "largest abs(x) of what its down projection reads; null of the shared one, "
               "and if no token chose it", "activation"),
        Column("neuron", pl.UInt32, "neuron of `max_abs_input`"),
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
        LAYER, SEQUENCE, TOKEN, DIM, _PART, _EXPERT,
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

_COUNTED = "over the first `experts.sequences` sequences; no row where table `experts` has none"

EXPERT_LOAD = Table(
    "expert_load",
    f"population, layer, routed expert: how many positions the router sends to it, {_COUNTED}",
    (
        POPULATION, LAYER,
        Column("expert", pl.UInt16, "index of the routed expert, from 0"),
        Column("chosen", pl.Int64, "positions that chose it", "positions"),
        Column("share", pl.Float64, "of the population's positions, those that chose it; over a layer's experts they "
               "sum to how many a position chooses", "share"),
        Column("load", pl.Float64, "chosen / the mean of the layer's experts: 1 for all of an even router"),
        Column("mean_weight", pl.Float64, "mean over these positions of the router's weight; null if none chose it"),
        Column("weight_share", pl.Float64, "the sum of these weights / that of all the layer's experts", "share"),
    ),
)  # fmt: skip

EXPERT_BALANCE = Table(
    "expert_balance",
    f"population, layer: how evenly the router spreads positions over its experts, {_COUNTED}",
    (
        POPULATION, LAYER,
        Column("positions", pl.Int64, "positions of the population", "positions"),
        Column("experts", pl.UInt16, "routed experts of the layer"),
        Column("experts_per_position", pl.Float64, "experts that a position chooses, the mean"),
        Column("never_chosen", pl.UInt16, "experts that no position chose"),
        Column("largest_load", pl.Float64, "largest `load` of an expert: 1 if the router is even, experts / "
               "experts_per_position if all positions choose the same"),
        Column("largest_expert", pl.UInt16, "the expert with it, the first of several"),
        Column("entropy", pl.Float64, "-sum p log p / log(experts), p an expert's share of all choices: 1 if the "
               "router is even, 0 if one expert has all; null of a single expert, or of no positions"),
    ),
)  # fmt: skip
