"""What the numbers of a report mean, and what they do not."""

from collections.abc import Collection, Mapping
from typing import Any

from outlier_features.dims.dims_schema import READINGS
from outlier_features.wording import number, percent


def _location(rule: Mapping[str, Any] | None) -> list[str]:
    if rule is None:
        return []
    sign = ">=" if rule["inclusive"] else ">"
    return [
        f"Rule location: an occurrence, |x| {sign} {number(rule['threshold'])}, is kept if its location (sequence, "
        f"position, dimension) is hit in {percent(rule['layer_share'])} of the layers of the site or more, each "
        "site for itself; a dimension is one-sided if one sign holds at least 95 % of its kept occurrences."
    ]


def _populations(names: Collection[str]) -> str:
    if len(names) == 1:
        return "There is one population, all: every position."
    return (
        "Population all is every position but padding; population without_first leaves out the first position of each "
        "sequence and special tokens."
    )


def meaning(summary: Mapping[str, Any]) -> list[str]:
    """A sentence or two on each rule, word and limit, with the criteria that the run used."""
    dettmers, massive = summary["rules"]["dettmers"], summary["rules"]["massive"]
    layer_reading, position_reading = dettmers["layer_reading"], dettmers["position_reading"]
    return [
        "Rule dettmers (LLM.int8(), Dettmers et al. 2022): a dimension passes in a sequence if it has hits, |x| >= "
        f"{number(dettmers['threshold'])}, in {percent(dettmers['layer_share'])} of the layers or more and at "
        f"{percent(dettmers['position_share'])} of the positions or more, on the inputs of the linear layers: "
        "attn_norm, mixer_norm and mlp_norm jointly. Rule dettmers_heads is the same on attn_heads.",
        f"These shares can be read in several ways; this run selects by {layer_reading} ({READINGS[layer_reading]}) "
        f"and {position_reading} ({READINGS[position_reading]}).",
        "Rule massive (Sun et al. 2024): a value on resid_post is a massive activation if |x| > "
        f"{number(massive['threshold'])} and |x| >= {number(massive['ratio'])} times the median |x| of its layer and "
        "sequence, a median over the positions of the population.",
        *_location(summary["location"]),
        "A dimension is selected if at least one sequence passes; how many do is given beside it.",
        _populations(summary["populations"]),
        "The kind of a selected dimension follows from the share of positions with a hit, averaged over the sequences "
        "that pass: persistent (at least 50 %), massive (at most 5 %) or mixed. Kind massive is not rule massive.",
        "A dimension steps up in the first layer where its largest |x| on resid_post reaches half of its maximum over "
        "layers, and down in the first later layer where it is below that half.",
        "A layer is a block of the model. Layers, positions, sequences and dimensions are counted from 0. An "
        "occurrence is one value (sequence, layer, site, position, dimension); a location leaves out layer and "
        "site; a pair is (sequence, dimension).",
        "The gain of a norm is what its normalised input is multiplied by, dimension by dimension. A gain near 0 "
        "hides a dimension from the linear layers that read the norm, however large it is in the residual stream.",
        "The published criteria 6.0, 25 % and 6 % were calibrated on one model of 125 million parameters; the "
        "sensitivity figure shows how the counts depend on them.",
        "An ablation sets the selected dimensions of population all to zero, or to their mean in the unchanged model "
        "over the same positions, in the output of the layer where they step up, or to zero in all inputs of linear "
        "layers as in LLM.int8(). Top-1 probability is the largest that the model gives to any next token, whether it "
        "is right or not. Where zero does harm and the mean does not, it is the value that the model needs and not how "
        "it varies.",
        "The numbers hold for this sample of this text, in this number format. A large value alone does not show that "
        "the model needs it.",
    ]
