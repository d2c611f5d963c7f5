"""Super weights (Yu et al. 2024, arXiv 2411.07191): single weights of an MLP's last linear layer that make a spike."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from outlier_features.errors import InputError
from outlier_features.model.interventions import weight_at, zeroing
from outlier_features.model.models import LoadedModel
from outlier_features.model.sites import Block, hooked


@dataclass(frozen=True)
class Spike:
    """The value with the largest |x| of a tensor (1, T, H), and where it is."""

    value: float
    position: int
    dim: int


@dataclass(frozen=True)
class SuperWeight:
    """`W_down[row, col]` of block `layer`, and the spikes by which it was found in the search's round `round`."""

    round: int
    layer: int
    row: int
    col: int
    value: float
    mlp_act: Spike
    mlp_down: Spike


def search_super_weights(
    loaded: LoadedModel, blocks: list[Block], ids: torch.Tensor, *, threshold: float, rounds: int
) -> list[SuperWeight]:
    """The super weights that the sequence `ids`, int64 (1, T), brings out, in the order in which they are found.

    In a block where both `mlp_act` and `mlp_down` have |x| > `threshold`, it is the weight from the neuron of the one
    spike to the dim of the other. The earliest such block's is set to zero and the model is run again, until there is
    none or after so many `rounds`. A block whose two spikes are those of a weight that is zero already is passed over:
    other weights keep them up, and it would be found for ever. All weights are what they were when this returns or
    raises.

    Raises `InputError` where an activation is not finite.
    """
    found: dict[tuple[int, int, int], SuperWeight] = {}
    with zeroing() as zero:
        for number in tqdm(range(1, rounds + 1), desc="super weights", unit="round", file=sys.stderr):
            spikes = _spikes(loaded, blocks, ids)
            one = next((w for w in _candidates(blocks, spikes, number, threshold) if _place(w) not in found), None)
            if one is None:
                break
            zero(down_projection(blocks, one.layer), one.row, one.col)
            found[_place(one)] = one
    return list(found.values())


def down_projection(blocks: list[Block], layer: int) -> nn.Module:
    """The last linear layer of a dense MLP."""
    return blocks[layer].sites["mlp_down"].module


def searched(block: Block) -> bool:
    return {"mlp_act", "mlp_down"} <= block.sites.keys()


def _place(weight: SuperWeight) -> tuple[int, int, int]:
    return weight.layer, weight.row, weight.col


def _candidates(
    blocks: list[Block], spikes: Mapping[tuple[int, str], Spike], number: int, threshold: float
) -> Iterator[SuperWeight]:
    """One for each block in which both spike, the earliest block first."""
    for layer, block in enumerate(blocks):
        if searched(block):
            act, down = spikes[layer, "mlp_act"], spikes[layer, "mlp_down"]
            if abs(act.value) > threshold and abs(down.value) > threshold:
                value = weight_at(down_projection(blocks, layer), down.dim, act.dim)
                yield SuperWeight(number, layer, down.dim, act.dim, value, act, down)


def _spikes(loaded: LoadedModel, blocks: list[Block], ids: torch.Tensor) -> dict[tuple[int, str], Spike]:
    found: dict[tuple[int, str], Spike] = {}

    def keep(key: tuple[int, str], x: torch.Tensor) -> None:
        at = int(x.abs().argmax())
        value, (position, dim) = float(x.reshape(-1)[at]), divmod(at, x.shape[-1])
        if not abs(value) < float("inf"):
            raise InputError(
                f"dtype: {x.dtype} gives values that are not finite in {key[1]} of block {key[0]} while super weights "
                "are searched, expected finite activations"
            )
        found[key] = Spike(value, position, dim)

    sites = [
        ((layer, name), block.sites[name])
        for layer, block in enumerate(blocks)
        if searched(block)
        for name in ("mlp_act", "mlp_down")
    ]
    with hooked(sites, keep), torch.inference_mode():
        loaded.base(ids)
    return found
