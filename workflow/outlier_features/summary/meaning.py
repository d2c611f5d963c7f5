"""What the numbers of a report mean, and what they do not."""

from collections.abc import Collection, Mapping
from typing import Any

from outlier_features.rules.kinds import rules_of


def _populations(names: Collection[str]) -> str:
    if len(names) == 1:
        return "There is one population, all: every position."
    return (
        "Population all is every position but padding; population without_first leaves out the first position of each "
        "sequence and special tokens."
    )


def meaning(summary: Mapping[str, Any]) -> list[str]:
    """A sentence or two on each rule, word and limit, with the criteria that the run used."""
    return [
        *(rule.meaning() for rule in rules_of(summary["rules"]).values()),
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
