"""Neurons' values, reduced while a model runs: none is kept but the extremes of each sequence."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from outlier_features.errors import InputError
from outlier_features.experts.moe_layers import MoeLayer, find_moe_layers, neuron_hook
from outlier_features.files.tensorfile import TensorFile
from outlier_features.model.hooks import hooks
from outlier_features.model.models import LoadedModel
from outlier_features.model.record_in_passes import Recorder
from outlier_features.model.sites import Block, Site
from outlier_features.neurons.bank import Bank, Job
from outlier_features.neurons.kept_neurons import ABSENT, BANKS, BankShape
from outlier_features.neurons.position_classes import norms_of, position_classes

Array = np.ndarray[Any, Any]
_ACTIVATION, _STREAM = "mlp_act", "resid_post"


class NeuronRecorder(Recorder):
    """The neurons of the blocks whose `mlp_act`, or whose experts, are known. Routed experts are a bank, a shared one
    beside them is another.

    absent   by block, why its neurons are not known

    Raises `InputError` where no block has neurons that are known.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        blocks: Sequence[Block],
        parts: Array,
        *,
        sequences: int,
        examples: int,
        high_norm: float,
        threads: int,
    ):
        """parts       of the run's positions, (N, T)
        sequences   that will be received
        examples    sequences in a list
        high_norm   see `position_classes`
        threads     that share a block's neurons
        """
        super().__init__()
        self._parts, self._high_norm = parts, high_norm
        self._examples = min(examples, sequences)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._experts: dict[int, MoeLayer] = {}
        self._shapes: dict[int, list[BankShape]] = {}
        self._find(loaded, blocks)
        if not self._shapes:
            raise InputError(next(iter(self.absent.values())))
        self._banks: dict[int, list[Bank]] = {}
        # By block: whether of routed experts, the expert, values, rows of the batch.
        self._waiting: dict[int, list[tuple[bool, int, Array, Array]]] = {}
        self._first, self._shape = 0, tuple[int, ...]()

    def _find(self, loaded: LoadedModel, blocks: Sequence[Block]) -> None:
        routed = find_moe_layers(loaded, list(blocks)) if any(block.routed for block in blocks) else None
        layers = {layer.layer: layer for layer in routed.layers} if routed else {}
        for index, block in enumerate(blocks):
            if _STREAM not in block.sites:
                self.absent[f"{index}"] = f"{_STREAM} is absent: {block.absent[_STREAM]}"
                continue
            if _ACTIVATION in block.sites:
                shapes = [self._dense(f"{index}", index, block.sites[_ACTIVATION])]
            elif index in layers:
                self._experts[index] = layers[index]
                experts: Any = layers[index].experts
                width = experts.down_proj.shape[1 if experts.is_transposed else 2]
                shapes = [BankShape(f"{index}.experts", index, layers[index].count, width)]
                if shared := layers[index].shared_act:
                    shapes.insert(0, self._dense(f"{index}.shared", index, shared))
            else:
                known = routed.absent if routed and block.routed else None
                self.absent[f"{index}"] = known or block.absent[_ACTIVATION]
                continue
            self.sites[f"{_STREAM}.{index}"] = block.sites[_STREAM]
            self._shapes[index] = shapes

    def _dense(self, name: str, index: int, site: Site) -> BankShape:
        self.sites[f"{_ACTIVATION}.{index}"] = site
        return BankShape(name, index, 0, site.width)

    @property
    def provenance(self) -> dict[str, Any]:
        known = [one for i, shapes in self._shapes.items() if f"{i}" not in self.absent for one in shapes]
        there = {one.name: [one.experts, one.neurons] for one in known}
        return {BANKS: there, ABSENT: dict(sorted(self.absent.items(), key=lambda item: int(item[0])))}

    @contextmanager
    def listening(self, first: int, shape: tuple[int, ...]) -> Iterator[None]:
        self._first, self._shape = first, shape
        self._waiting.clear()
        after = [(layer.experts, self._of_experts(index)) for index, layer in self._experts.items()]
        with hooks(after=after):
            yield

    def _of_experts(self, index: int) -> Callable[[nn.Module, Any, Any, Any], None]:
        take = neuron_hook(lambda expert, rows, values: self._wait(index, True, expert, values, rows.cpu().numpy()))

        def hand_on(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            with self.going_on():
                take(module, args, kwargs, output)

        return hand_on

    def receive(self, name: str, value: torch.Tensor) -> None:
        """With the block's output its neurons are taken."""
        site, _, layer = name.rpartition(".")
        with self.going_on():
            if site == _ACTIVATION:
                flat = value.detach().reshape(-1, value.shape[-1])
                self._wait(int(layer), False, 0, flat, np.arange(len(flat)))
            else:
                self._take(int(layer), value)

    def _wait(self, index: int, routed: bool, expert: int, values: torch.Tensor, rows: Array) -> None:
        # A copy: the model may go on to change its own tensor in place.
        own = values.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()
        self._waiting.setdefault(index, []).append((routed, expert, own, rows))

    def _take(self, index: int, output: torch.Tensor) -> None:
        """Take a block's neurons, now that the norms of its positions are known."""
        waiting = self._waiting.pop(index, [])
        if f"{index}" in self.absent:
            return
        batch, tokens = self._shape
        stream = output.detach().reshape(batch, tokens, -1).to("cpu", torch.float32).numpy()
        banks = self._banks.setdefault(
            index, [Bank(shape, self._examples, self._threads) for shape in self._shapes[index]]
        )
        for b in range(batch):
            sequence = self._first + b
            classes = position_classes(self._parts[sequence], norms_of(stream[b]), self._high_norm)
            jobs: list[Job] = []
            for routed, expert, values, rows in waiting:
                own = slice(*np.searchsorted(rows, (b * tokens, (b + 1) * tokens)))
                jobs += banks[-1 if routed else 0].jobs(expert, values[own], rows[own] - b * tokens, classes, sequence)
            if not all(self._pool.map(lambda job: job(), jobs)):
                self.absent[f"{index}"] = f"{_ACTIVATION} has values that are NaN or infinite"
                del self._banks[index]
                return

    def arrays(self) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for index, banks in sorted(self._banks.items()):
            for shape, bank in zip(self._shapes[index], banks, strict=True):
                for of_class, kept in bank.kept():
                    found |= kept.arrays(shape.name, of_class)
        self.forget()
        return found

    def together(self, files: Sequence[TensorFile]) -> dict[str, Array]:
        return {name: file.array(name) for file in files for name in file.entries}

    def forget(self) -> None:
        self._banks.clear()

    def close(self) -> None:
        self._pool.shutdown()
