"""Super weights (Yu et al. 2024, arXiv 2411.07191): single weights of an MLP's last linear layer that make a spike."""

import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from outlier_features.errors import InputError
from outlier_features.model.interventions import scaling, weight_at, weight_of
from outlier_features.model.models import LoadedModel
from outlier_features.model.prefixes import PassEnded, Prefix, Prefixes, after_blocks
from outlier_features.model.sites import Block, hooked

Place = tuple[int, int, int]


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

    A pass ends with the block where a weight is found, and the next begins there: what stands before it is as it was.

    Raises `InputError` where an activation is not finite.
    """
    search = _Search(loaded, blocks, ids, threshold)
    found: dict[Place, SuperWeight] = {}
    with scaling() as scale:
        for number in tqdm(range(1, rounds + 1), desc="super weights", unit="round", file=sys.stderr):
            one = search.next(number, found)
            if one is None:
                break
            scale(down_projection(blocks, one.layer), one.row, one.col, 0)
            found[_place(one)] = one
    return list(found.values())


def down_projection(blocks: list[Block], layer: int) -> nn.Module:
    """The last linear layer of a dense MLP."""
    return blocks[layer].sites["mlp_down"].module


def searched(block: Block) -> bool:
    return {"mlp_act", "mlp_down"} <= block.sites.keys()


def _place(weight: SuperWeight) -> Place:
    return weight.layer, weight.row, weight.col


class _Search:
    """Passes over one sequence, each of which ends where it finds a weight, and begins where the one before ended."""

    def __init__(self, loaded: LoadedModel, blocks: list[Block], ids: torch.Tensor, threshold: float):
        self._loaded, self._blocks, self._ids, self._threshold = loaded, blocks, ids, threshold
        self._prefixes = Prefixes(loaded)
        self._prefix = Prefix(0, ids.shape)

    @torch.inference_mode()
    def next(self, number: int, known: Collection[Place]) -> SuperWeight | None:
        """The weight that round `number` finds, none of the `known`; it is set to zero before the next round."""
        spikes: dict[tuple[int, str], Spike] = {}
        found: list[SuperWeight] = []

        def look(layer: int, _: Any) -> None:
            weight = self._weight(layer, spikes, number) if layer >= self._prefix.start else None
            if weight and _place(weight) not in known:
                found.append(weight)
                raise PassEnded
            kept.pop(layer, None)  # what stands before one block is all that the next pass needs

        def keep(key: tuple[int, str], x: torch.Tensor) -> None:
            spikes[key] = spike_of(key, x)

        sites = [
            ((layer, name), block.sites[name])
            for layer, block in enumerate(self._blocks)
            if searched(block)
            for name in ("mlp_act", "mlp_down")
        ]
        with (
            suppress(PassEnded),
            self._prefixes.begun(self._prefix),
            hooked(sites, keep, self._prefixes.past(self._prefix.start)),
            self._prefixes.keeping(range(len(self._blocks)), self._ids) as kept,
            after_blocks(self._loaded.stack, look),
        ):
            self._loaded.base(self._ids)
        if not found:
            return None
        self._prefix = kept.get(self._start(found[0].layer), Prefix(0, self._ids.shape))
        return found[0]

    def _start(self, layer: int) -> int:
        """Where a pass may begin when a weight of this block is another; of a weight of several blocks, the first."""
        weight = weight_of(down_projection(self._blocks, layer))
        # What is zero by now lies before this block, so that what is tried there is of the unchanged model throughout.
        return self._prefixes.start(min(layer, self._prefixes.first_with(weight)))

    def _weight(self, layer: int, spikes: Mapping[tuple[int, str], Spike], number: int) -> SuperWeight | None:
        """That of a block in which both spike."""
        if not searched(self._blocks[layer]):
            return None
        act, down = spikes[layer, "mlp_act"], spikes[layer, "mlp_down"]
        if not (abs(act.value) > self._threshold and abs(down.value) > self._threshold):
            return None
        value = weight_at(down_projection(self._blocks, layer), down.dim, act.dim)
        return SuperWeight(number, layer, down.dim, act.dim, value, act, down)


def spike_of(key: tuple[int, str], x: torch.Tensor) -> Spike:
    """The spike of a block's site, (1, T, H); raises `InputError` where it is not finite."""
    at = int(x.abs().argmax())
    value, (position, dim) = float(x.reshape(-1)[at]), divmod(at, x.shape[-1])
    if not abs(value) < float("inf"):
        raise InputError(
            f"dtype: {x.dtype} gives values that are not finite in {key[1]} of block {key[0]} while super weights "
            "are searched, expected finite activations"
        )
    return Spike(value, position, dim)
