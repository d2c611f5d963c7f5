"""The weights of a model's directory by name, each decoded when it is read."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from outlier_features.errors import InputError
from outlier_features.model.model_files import INDEX, WEIGHTS
from outlier_features.quantized.formats import method_of, quantized_weights
from outlier_features.quantized.quantization import Quantization
from outlier_features.quantized.weight import Entry, Weight


class Checkpoint:
    """The safetensors files of a directory, as a mapping of weights that transformers could have saved unquantized."""

    def __init__(self, location: Path, files: Mapping[str, Any], settings: Mapping[str, Any] | None):
        self.location = location
        self._stored = _Files(files)
        self._quantized: dict[str, Weight] = {}
        self.quantization: Quantization | None = None
        if settings:
            try:
                self._quantized = quantized_weights(self._stored, settings)
            except InputError as error:
                raise InputError(f"{location}: {error}") from error
        if self._quantized:
            weights = [(weight.bits, weight.group) for weight in self._quantized.values()]
            self.quantization = Quantization.of_weights(method_of(settings or {}), weights)
        parts = {name for weight in self._quantized.values() for name in weight.parts.values()}
        self.names = sorted({*self._stored} - parts | self._quantized.keys())

    @classmethod
    def open(cls, location: Path) -> "Checkpoint":
        """Raises `InputError` where a file is missing or damaged, or quantized in a way that is not known."""
        names = _weight_files(location)
        try:
            files = [safe_open(location / name, "pt") for name in names]
        except (OSError, SafetensorError) as error:
            raise InputError(f"{location}: expected whole safetensors files, found {error}") from error
        return cls(location, {name: file for file in files for name in file.keys()}, quantization_config(location))  # noqa: SIM118

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the decoded weight."""
        return self._quantized[name].shape if name in self._quantized else self._stored[name].shape

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A weight, decoded where it is quantized.

        dtype   what floats are turned into; None leaves them as they are, and decodes to float32

        A decoded value is computed in float32 and rounded once. Raises `InputError` where the weight cannot be decoded.
        """
        if name not in self._quantized:
            tensor = self._stored.tensor(name)
            return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        weight = self._quantized[name]
        parts = {role: self._stored.tensor(part) for role, part in weight.parts.items()}
        try:
            return weight.decode(parts, dtype or torch.float32)
        except InputError as error:
            raise InputError(f"{self.location}: {name}: {error}") from error


class _Files:
    """The tensors as they are stored."""

    def __init__(self, files: Mapping[str, Any]):
        self._files = files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Entry:
        part = self._files[name].get_slice(name)
        return Entry(part.get_dtype(), tuple(part.get_shape()))

    def tensor(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor


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


def _weight_files(location: Path) -> list[str]:
    weights, index = WEIGHTS["safetensors"], INDEX["safetensors"]
    if (location / weights).is_file():
        return [weights]
    try:
        shards = json.loads((location / index).read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{location}: expected {weights}, or {index} with a weight_map, found {error!r}") from error
    return sorted(set(shards))
