"""The channels of what linear layers read, reduced while a model runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from outlier_features.channels.kept_channels import ABSENT, INPUTS, TOKEN_ABSMAX, KeptChannels, merged
from outlier_features.channels.linear_layers import LinearInput, LinearInputs, Rows
from outlier_features.files.tensorfile import TensorFile
from outlier_features.model.record_in_passes import Recorder
from outlier_features.populations import EXCLUDED, REST

Array = np.ndarray[Any, Any]
# Values that are reduced at once, in float64: as many as a core's cache holds, or so few that memory is no matter.
_AT_ONCE_ON_CPU, _AT_ONCE = 1 << 17, 1 << 24


class ChannelRecorder(Recorder):
    """The statistics of the inputs of a model's linear layers; absent are layers by name."""

    def __init__(self, inputs: LinearInputs, parts: Array, start: int, stop: int):
        """parts         of the run's positions, (N, T)
        start, stop   the first sequence that the model will run and one past the last
        """
        super().__init__()
        self._inputs, self._parts, self._start = inputs, parts, start
        self._shape = stop - start, parts.shape[1]
        self.absent = dict(inputs.absent)
        self._kept: dict[str, dict[int, KeptChannels]] = {}
        self._tokens: dict[str, Array] = {}
        self._first, self._of_batch = start, parts[:0]
        self._dense: list[tuple[int, int, Array]] = []  # of an input that every token goes through: part, 0 and rows

    @property
    def provenance(self) -> dict[str, Any]:
        inputs = [
            {
                "layer": one.layer,
                "site": one.site,
                "layers": [
                    {
                        "name": layer.name, "rows": layer.rows, "width": layer.width, "experts": layer.experts,
                        "transposed": layer.transposed,
                    }
                    for layer in one.layers
                ],
            }
            for one in self._inputs.inputs
        ]  # fmt: skip
        return {INPUTS: inputs, ABSENT: self.absent}

    @contextmanager
    def listening(self, first: int, shape: tuple[int, ...]) -> Iterator[None]:
        self._first, self._of_batch = first, self._parts[first : first + shape[0]]
        self._dense = [(part, 0, np.flatnonzero(self._of_batch.reshape(-1) == part)) for part in (EXCLUDED, REST)]
        with self._inputs.listening(self._receive, guard=self.going_on):
            yield

    def _receive(self, one: LinearInput, rows: Rows) -> None:
        if self.failed or one.name in self.absent:
            return
        if not one.experts and len(rows.values) != self._of_batch.size:
            why = f"it reads {len(rows.values)} vectors of {self._of_batch.size} tokens, expected one of each"
            self.absent |= {layer.name: why for layer in one.layers}
            return
        # There is no float64 on Apple's GPUs.
        values = rows.values.cpu() if rows.values.device.type == "mps" else rows.values
        at_once = _AT_ONCE_ON_CPU if values.device.type == "cpu" else _AT_ONCE
        groups = list(self._groups(rows, max(1, at_once // one.width)))
        if not groups:
            return
        found = torch.stack([_reduced(_some(values, own)) for *_, own in groups])
        for (part, expert, own), numbers in zip(groups, found.cpu().numpy(), strict=True):
            self._of_part(one, part).add(expert, numbers, len(own))
        if one.site == "mlp_act" and not one.experts:
            self._add_tokens(one, values)

    def _groups(self, rows: Rows, most: int) -> Iterator[tuple[int, int, Array]]:
        """Part, expert and at most so many rows that are of both."""
        whole = self._dense if rows.experts is None else self._of_experts(rows.positions, rows.experts)
        for part, expert, own in whole:
            for begin in range(0, len(own), most):
                yield part, expert, own[begin : begin + most]

    def _of_experts(self, positions: torch.Tensor, experts: torch.Tensor) -> Iterator[tuple[int, int, Array]]:
        parts, numbers = self._of_batch.reshape(-1)[positions.cpu().numpy()], experts.cpu().numpy()
        for expert in np.unique(numbers).tolist():
            for part in (EXCLUDED, REST):
                yield part, expert, np.flatnonzero((numbers == expert) & (parts == part))

    def _of_part(self, one: LinearInput, part: int) -> KeptChannels:
        kept = self._kept.setdefault(one.name, {})
        if part not in kept:
            kept[part] = KeptChannels.nothing(one.experts, one.width)
        return kept[part]

    def _add_tokens(self, one: LinearInput, values: torch.Tensor) -> None:
        found = values.abs().amax(-1).float().cpu().numpy().reshape(self._of_batch.shape)
        of_all = self._tokens.setdefault(one.name, np.zeros(self._shape, np.float32))
        own = of_all[self._first - self._start :][: len(found)]
        np.maximum(own, found, out=own)  # a layer may be called more than once in a pass

    def arrays(self) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for name, kept in self._kept.items():
            for part, channels in sorted(kept.items()):
                found |= channels.arrays(name, part)
        found |= {f"{name}.{TOKEN_ABSMAX}": values for name, values in self._tokens.items()}
        self.forget()
        return found

    def together(self, files: Sequence[TensorFile]) -> dict[str, Array]:
        """An input of a layer that several blocks share was recorded in the passes of each."""
        found: dict[str, Array] = {}
        for name in (one.name for one in self._inputs.inputs):
            for part in (EXCLUDED, REST):
                if kept := merged(files, name, [part]):
                    found |= kept.arrays(name, part)
            tokens = f"{name}.{TOKEN_ABSMAX}"
            if of_blocks := [file.array(tokens) for file in files if tokens in file.entries]:
                found[tokens] = np.maximum.reduce(of_blocks)
        return found

    def forget(self) -> None:
        self._kept, self._tokens = {}, {}


def _some(values: torch.Tensor, rows: Array) -> torch.Tensor:
    """These rows, in order; where they follow one another, in the memory of `values`."""
    first, stop = int(rows[0]), int(rows[-1]) + 1
    if stop - first == len(rows):
        return values[first:stop]
    return values[torch.from_numpy(rows).to(values.device)]


def _reduced(values: torch.Tensor) -> torch.Tensor:
    """Least and largest value, sum and sum of squares of each column, float64 (4, W)."""
    low, high, wide = values.amin(0), values.amax(0), values.double()
    total = wide.sum(0)
    return torch.stack([low.double(), high.double(), total, wide.square_().sum(0)])
