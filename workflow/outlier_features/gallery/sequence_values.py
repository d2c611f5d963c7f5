"""What chosen neurons and the residual stream are at each position of a sequence, from a pass of the model over it.

The pass is that of the extraction: one sequence with its padding, through the model's own experts; so on a CPU the
values are bit by bit those of the run's other tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch

from outlier_features.errors import InputError
from outlier_features.experts.moe_layers import MoeLayer, find_moe_layers, neuron_hook
from outlier_features.gallery.choose_pages import banks_of
from outlier_features.gallery.written_weights import Bank, dense_neurons
from outlier_features.model.forward_pass import run_blocks
from outlier_features.model.hooks import hooks
from outlier_features.model.models import LoadedModel
from outlier_features.model.sites import Block, find_sites, hooked
from outlier_features.model.verify_sites import keep_proven, prove_sites
from outlier_features.tokens.tokens import Tokens

Array = np.ndarray[Any, Any]
ACTIVATION, STREAM = "mlp_act", "resid_post"


@dataclass(frozen=True)
class SequenceValues:
    """A model with its sites proven, and the sequences that it runs.

    experts   the blocks with experts that are known
    """

    loaded: LoadedModel
    blocks: list[Block]
    experts: Mapping[int, MoeLayer]
    run: Tokens

    @classmethod
    def of(cls, loaded: LoadedModel, run: Tokens) -> "SequenceValues":
        blocks = find_sites(loaded)
        keep_proven(blocks, prove_sites(loaded, blocks))
        routed = find_moe_layers(loaded, blocks).layers if any(block.routed for block in blocks) else ()
        return cls(loaded, blocks, {layer.layer: layer for layer in routed}, run)

    def positions(self, sequence: int) -> Array:
        """Those that are not padding."""
        found: Array = np.flatnonzero(self.run.mask[sequence])
        return found

    def record(self, sequence: int, neurons: pl.DataFrame, *, stream: bool) -> tuple[Array, dict[int, Array]]:
        """Run a sequence. Gives the values of the neurons, float32 (T, n), NaN where an expert was not given the token;
        and with `stream` by layer resid_post, float32 (T, H), of the blocks that have it. Padding is left out.

        neurons   with `layer`, `expert` and `neuron`, ordered by block and expert

        Raises `InputError` where a neuron's block has no such values.
        """
        positions = self.positions(sequence)
        place = np.full(self.run.mask.shape[1], -1)
        place[positions] = np.arange(len(positions))
        values = np.full((len(positions), len(neurons)), np.nan, np.float32)
        streams: dict[int, Array] = {}
        columns: dict[Bank, tuple[slice, torch.Tensor]] = {}
        first = 0
        for bank, rows in banks_of(neurons):
            columns[bank] = (
                slice(first, first + len(rows)),
                torch.from_numpy(rows["neuron"].to_numpy().astype(np.int64)),
            )
            first += len(rows)
            self._require(bank.layer, bank.expert)

        def receive(key: tuple[int, str], value: torch.Tensor) -> None:
            layer, site = key
            own = value.detach().reshape(len(place), -1)[torch.from_numpy(positions).to(value.device)]
            if site == STREAM:
                streams[layer] = _array(own)
            else:
                where, which = columns[Bank(layer, None)]
                values[:, where] = _array(own[:, which.to(own.device)])

        def receive_expert(layer: int, expert: int, rows: torch.Tensor, read: torch.Tensor) -> None:
            if chosen := columns.get(Bank(layer, expert)):
                where, which = chosen
                at = place[rows.cpu().numpy()]
                values[at[at >= 0], where] = _array(read[:, which.to(read.device)])[at >= 0]

        sites = {
            (layer, ACTIVATION): site
            for layer, expert in columns
            if expert is None and (site := dense_neurons(self.blocks, self.experts, layer))
        }
        if stream:
            known = {n: block.sites[STREAM] for n, block in enumerate(self.blocks) if STREAM in block.sites}
            sites |= {(layer, STREAM): site for layer, site in known.items()}
        layers = {layer for layer, expert in columns if expert is not None}
        ids = torch.from_numpy(self.run.tokens[sequence][None].astype(np.int64)).to(self.loaded.device)
        mask = torch.from_numpy(self.run.mask[sequence][None].copy()).to(self.loaded.device)
        after = [(self.experts[layer].experts, neuron_hook(partial(receive_expert, layer))) for layer in sorted(layers)]
        with hooked(sites.items(), receive), hooks(after=after):
            run_blocks(self.loaded, ids, mask)
        return values, streams

    def _require(self, layer: int, expert: int | None) -> None:
        dense = dense_neurons(self.blocks, self.experts, layer)
        if not (layer in self.experts if expert is not None else dense):
            raise InputError(
                f"neurons.parquet: has neurons of layer {layer}, but the model, loaded again, has none there that are "
                "known; delete the run's tables to have them made again"
            )


def _array(value: torch.Tensor) -> Array:
    found: Array = value.to("cpu", torch.float32).numpy()
    return found
