"""A model without its weights, and its weights as its modules have them, a few at a time.

What transformers does to a checkpoint while it loads one (names changed, experts fused, matrices split, dtypes) is done
by transformers here too: once for all weights on the meta device, where nothing is read, and then for some of them.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from outlier_features.errors import InputError
from outlier_features.model.checkpoint import Checkpoint

Tensor = torch.Tensor
# transformers starts threads that read ahead of what it converts, except where part of a model stays on disk.
_ONE_AT_A_TIME = {"": "cpu", "-": "disk"}


class Unread:
    """A tensor of a checkpoint, as transformers takes it: it asks for all of it, then for a device and a dtype."""

    def __init__(self, stored: Checkpoint, name: str, to_meta: bool = False):
        self._stored, self._name, self._to_meta = stored, name, to_meta
        self.shape, self.dtype = torch.Size(stored.shape(name)), stored.dtype(name)

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def __getitem__(self, _: Any) -> "Unread":
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        if self._to_meta:
            return torch.empty(self.shape, dtype=dtype or self.dtype, device="meta")
        return self._stored.read(self._name, dtype).to(dtype or self.dtype)


def without_weights(
    model_class: Any, config: Any, stored: Checkpoint, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model with its weights on the meta device, and what its loading says of weights.

    Buffers have their values, also those that a checkpoint stores, and so have weights that it lacks. Weights that are
    tied are one parameter, as in a whole load.
    """
    unread = {name: Unread(stored, name, to_meta=True) for name in stored.names}
    model, report = model_class.from_pretrained(
        None, config=config, state_dict=unread, device_map={"": "cpu"}, output_loading_info=True, **options
    )
    weights = WeightsOfModules(model, stored)
    _tie_equal(model, weights)
    _fill_buffers(model, weights)
    return model, report


def _tie_equal(model: PreTrainedModel, weights: "WeightsOfModules") -> None:
    """Of two weights that may be tied and are both stored, transformers compares the values; on meta it cannot."""
    for target, source in list(model.all_tied_weights_keys.items()):
        one, other = model.get_parameter(target), model.get_parameter(source)
        if one is other or not (one.is_meta and other.is_meta) or one.shape != other.shape:
            continue
        values = weights.read([target])[target], weights.read([source])[source]
        if torch.equal(*values):
            path, _, name = target.rpartition(".")
            setattr(model.get_submodule(path), name, other)
        else:
            model.all_tied_weights_keys.pop(target)


def _fill_buffers(model: PreTrainedModel, weights: "WeightsOfModules") -> None:
    names = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    for name, value in weights.read(names).items() if names else ():
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        module._buffers[own] = value


class WeightsOfModules:
    """The weights of a model on the meta device, by the names that its modules have for them."""

    def __init__(self, model: PreTrainedModel, stored: Checkpoint):
        self._model, self._stored = model, stored
        self._mapping = get_model_conversion_mapping(model)

    @property
    def times_read(self) -> float:
        """Bytes read so far, over those of the checkpoint."""
        return self._stored.times_read

    @cached_property
    def _sources(self) -> dict[str, list[str]]:
        """By name, what of the checkpoint the weight is made of."""
        renamings = [one for one in self._mapping if isinstance(one, WeightRenaming)]
        converters = [one for one in self._mapping if isinstance(one, WeightConverter)]
        have, prefix = self._model.state_dict(), self._model.base_model_prefix
        sources: dict[str, list[str]] = defaultdict(list)
        converted: set[str] = set()
        for name in self._stored.names:
            target, pattern = rename_source_key(name, renamings, converters, prefix, have)
            if target not in have and name in have:
                target, pattern = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=have)
            if target in have:
                sources[target].append(name)
                converted |= {target} if pattern is not None else set()
        if have.keys() - sources.keys():  # some may be made together with another, under whose name their sources stand
            for first in sorted(converted):
                for name in self._converted(sources[first], to_meta=True):
                    sources.setdefault(name, sources[first])
        return dict(sources)

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """Weights and stored buffers by name, each in memory of its own.

        Raises `InputError` where the checkpoint does not have one of them.
        """
        sources = {source for name in names for source in self._sources.get(name, ())}
        found = self._converted(sources, to_meta=False)
        if lacking := sorted(set(names) - found.keys()):
            raise InputError(f"{self._stored.location}: its weights lack {lacking[0]}, expected it as before")
        return {name: found[name] for name in names}

    def _converted(self, sources: Iterable[str], to_meta: bool) -> dict[str, Tensor]:
        """What transformers makes of some tensors of the checkpoint; the model itself stays as it is."""
        before = dict(_named(self._model))
        unread = {name: Unread(self._stored, name, to_meta) for name in sources}
        # A weight gets the dtype that it has in the model, so that what the model keeps in float32 stays so.
        config = LoadStateDictConfig(
            dtype=torch.float32,
            device_map=_ONE_AT_A_TIME,
            weight_mapping=get_model_conversion_mapping(self._model),  # type: ignore[arg-type]
        )
        made = {}
        try:
            convert_and_load_state_dict_in_model(self._model, unread, config)
        finally:
            for name, value in list(_named(self._model)):
                if value is not before[name]:
                    made[name] = value.detach()
                    path, _, own = name.rpartition(".")
                    module = self._model.get_submodule(path)
                    store: Any = module._parameters if own in module._parameters else module._buffers
                    store[own] = before[name]
        return made


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights and buffers by every name that they have."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
