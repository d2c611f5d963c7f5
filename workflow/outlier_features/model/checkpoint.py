"""The weights of a model's directory by name, each decoded when it is read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from outlier_features.errors import InputError
from outlier_features.model.stored_weights import StoredWeights
from outlier_features.quantized.formats import method_of, quantized_weights
from outlier_features.quantized.quantization import Quantization
from outlier_features.quantized.weight import Weight


class Checkpoint:
    """The safetensors files of a directory, as a mapping of weights that transformers could have saved unquantized."""

    def __init__(self, location: Path, stored: StoredWeights, settings: Mapping[str, Any] | None):
        self.location = location
        self._stored = stored
        self._quantized: dict[str, Weight] = {}
        self.quantization: Quantization | None = None
        if settings:
            try:
                self._quantized = quantized_weights(stored, settings)
            except InputError as error:
                raise InputError(f"{location}: {error}") from error
        if self._quantized:
            weights = [(weight.bits, weight.group) for weight in self._quantized.values()]
            self.quantization = Quantization.of_weights(method_of(settings or {}), weights)
        parts = {name for weight in self._quantized.values() for name in weight.parts.values()}
        self.names = sorted({*stored} - parts | self._quantized.keys()) if parts else list(stored)

    @classmethod
    def open(cls, location: Path) -> "Checkpoint":
        """Raises `InputError` where a file is missing or damaged, or quantized in a way that is not known."""
        return cls(location, StoredWeights.open(location), quantization_config(location))

    @property
    def bytes_of_files(self) -> int:
        return sum(file.stat().st_size for file in self._stored.files)

    @property
    def times_read(self) -> float:
        """Bytes of tensors that were read so far, over those of all."""
        return self._stored.bytes_read / self._stored.bytes

    def dtype(self, name: str) -> torch.dtype:
        """As `read` gives it if it is told of no other."""
        return torch.float32 if name in self._quantized else self._stored.dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the decoded weight."""
        return self._quantized[name].shape if name in self._quantized else self._stored.shape(name)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A weight, decoded where it is quantized.

        dtype   what floats are turned into; None leaves them as they are, and decodes to float32

        A decoded value is computed in float32 and rounded once. Raises `InputError` where the weight cannot be decoded.
        """
        if name not in self._quantized:
            tensor = self._stored.read(name)
            return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        weight = self._quantized[name]
        parts = {role: self._stored.read(part) for role, part in weight.parts.items()}
        try:
            return weight.decode(parts, dtype or torch.float32)
        except InputError as error:
            raise InputError(f"{self.location}: {name}: {error}") from error


def quantization_config(location: Path) -> dict[str, Any] | None:
    """What config.json says of quantization, wherever it says it; None where it says nothing.

    Raises `InputError` where config.json is no object.
    """
    try:
        config = json.loads((location / "config.json").read_text(encoding="utf-8"))
        places = [config, *(config.get(key) or {} for key in ("text_config", "llm_config"))]
        found = [place.get(key) for place in places for key in ("quantization_config", "compression_config")]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{location}: expected a config.json of a transformers model, found {error}") from error
    return next((dict(one) for one in found if one), None)
