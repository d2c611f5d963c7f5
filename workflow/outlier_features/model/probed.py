"""What is asked of a model to find its sites and to prove them: that a few fixed inputs can be run through it."""

from typing import Any, Protocol

import torch
from torch import nn

from outlier_features.model.loading import Part
from outlier_features.model.stack import Stack


class Probed(Protocol):
    """A model in evaluation mode on its device.

    stack         its blocks
    part          the half of an encoder-decoder model that they are of
    config        transformers' config of the part that has the blocks; None where there is none
    probe_shape   (B, T): sequences of the probe, at least two that differ, and tokens of each
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def stack(self) -> Stack: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def part(self) -> Part | None: ...

    @property
    def config(self) -> Any: ...

    @property
    def probe_shape(self) -> torch.Size: ...

    def probe(self, **options: Any) -> Any:
        """Run the probe; returns what the model returns. `options` are told a model that may know them."""
