"""The inputs of a model's linear layers of which a run has statistics, and these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from outlier_features.channels.linear_layers import LinearInput, LinearInputs, find_linear_inputs
from outlier_features.errors import InputError
from outlier_features.files.tensorfile import TensorFile
from outlier_features.model.models import LoadedModel
from outlier_features.model.sites import Block

Array = np.ndarray[Any, Any]
_UNKNOWN = "the run has no statistics of its input"


@dataclass(frozen=True)
class KnownInputs:
    """Of the blocks, in their order; the head is left as it is.

    listed   all that the model has
    absent   by the name of a layer, why nothing is said of it
    """

    listed: LinearInputs
    inputs: tuple[LinearInput, ...]
    absent: Mapping[str, str]
    _stats: TensorFile

    def absmax(self, one: LinearInput) -> Array:
        """Largest abs(x) of each channel over the run's tokens, float32 (width,), over all experts that read any."""
        found = self._stats.array(f"{one.name}.absmax").astype(np.float32)
        return np.nanmax(found, axis=0) if one.experts else found

    def mean_square(self, one: LinearInput) -> Array:
        """Of each channel, float64 (width,), over all that experts read."""
        found = self._stats.array(f"{one.name}.mean_square").astype(np.float64)
        if not one.experts:
            return found
        count = self._stats.array(f"{one.name}.count").astype(np.float64)
        weighted: Array = np.where(count[:, None] > 0, found, 0) * count[:, None]
        return weighted.sum(0) / count.sum()


def known_inputs(loaded: LoadedModel, blocks: Sequence[Block], channel_stats: TensorFile) -> KnownInputs:
    """Raises `InputError` where there are none."""
    listed = find_linear_inputs(loaded, blocks)
    of_blocks = [one for one in listed.inputs if one.layer is not None]
    known = tuple(one for one in of_blocks if _is_known(one, channel_stats))
    if not known:
        raise InputError(f"{loaded.model_type}: no linear layer of its blocks whose input is known")
    unknown = {layer.name: _UNKNOWN for one in of_blocks if one not in known for layer in one.layers}
    return KnownInputs(listed, known, {**listed.absent, **unknown}, channel_stats)


def _is_known(one: LinearInput, channel_stats: TensorFile) -> bool:
    name = f"{one.name}.absmax"
    if name not in channel_stats.entries:
        return False
    return not one.experts or bool(channel_stats.array(f"{one.name}.count").any())
