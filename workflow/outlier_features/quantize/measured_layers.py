"""The linear layers of a run's model as `channel_stats.safetensors` has them: names, places, statistics of inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from outlier_features.channels.kept_channels import ABSENT
from outlier_features.channels.merge_channels import LAYERS
from outlier_features.files.missing import require_had
from outlier_features.files.tensorfile import TensorFile

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class MeasuredLayer:
    """A linear layer, or that of all experts whose matrices lie in one tensor.

    layer       its block; None of the head
    site        what it reads, if that is one
    rows        out of its matrix, `width` in
    experts     how many; 0 of a layer that every token goes through
    transposed  its weight is (in, out), as that of transformers' Conv1D
    reads       name of the first layer that reads the same
    """

    name: str
    layer: int | None
    site: str | None
    rows: int
    width: int
    experts: int
    reads: str
    transposed: bool


class MeasuredLayers:
    """Raises `MissingInput` where a run has no statistics of the inputs of linear layers."""

    def __init__(self, file: TensorFile):
        self._file = file
        require_had(file.provenance)

    @property
    def provenance(self) -> Mapping[str, Any]:
        return self._file.provenance

    @cached_property
    def layers(self) -> Sequence[MeasuredLayer]:
        """In the model's order, last the head."""
        return [MeasuredLayer(**one) for one in self._file.provenance[LAYERS]]

    @property
    def absent(self) -> Mapping[str, str]:
        """By name of a layer, why nothing is known of its input."""
        return dict(self._file.provenance[ABSENT])

    @property
    def head(self) -> list[str]:
        return [one.name for one in self.layers if one.layer is None]

    def reading_the_same(self) -> dict[str, list[MeasuredLayer]]:
        """By the first of them, in the model's order."""
        groups: dict[str, list[MeasuredLayer]] = {}
        for one in self.layers:
            groups.setdefault(one.reads, []).append(one)
        return groups

    def statistic(self, layer: MeasuredLayer, name: str) -> Array:
        """Over all positions: (width,), of experts (experts, width), NaN where one read nothing; `count` (1,) or
        (experts,)."""
        return self._file.array(f"{layer.name}.{name}")
