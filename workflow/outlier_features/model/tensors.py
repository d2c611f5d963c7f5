"""Tensors among a module's nested arguments and outputs."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers.utils import ModelOutput

Tensor = torch.Tensor


def first_tensor(value: Any) -> Any:
    """The first floating-point tensor in nested arguments or outputs, or None; `hidden_states` goes before others."""
    if torch.is_tensor(value):
        return value if value.is_floating_point() else None
    if isinstance(value, Mapping):
        value = [value.get("hidden_states"), *value.values()]
    if isinstance(value, (tuple, list)):
        return next((found for item in value if (found := first_tensor(item)) is not None), None)
    return None


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested tuples, lists, dicts and `ModelOutput`s with each tensor changed.

    Other objects are what they were: see `unknown_parts`.
    """
    if torch.is_tensor(value):
        return change(value)
    if isinstance(value, dict):
        changed = {key: map_tensors(item, change) for key, item in value.items()}
        return type(value)(**changed) if isinstance(value, ModelOutput) else changed
    if type(value) in (tuple, list):
        return type(value)(map_tensors(item, change) for item in value)
    if _is_named_tuple(value):
        return type(value)(*(map_tensors(item, change) for item in value))
    return value


def parts_of(value: Any) -> Iterator[Any]:
    """All that nested tuples, lists and dicts hold, in the order in which `map_tensors` changes tensors."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            yield from parts_of(item)
    else:
        yield value


def unknown_parts(value: Any) -> Iterator[Any]:
    """What of nested arguments or outputs may hold tensors that `map_tensors` does not reach."""
    if isinstance(value, dict):
        value = list(value.values())
    if type(value) in (tuple, list) or _is_named_tuple(value):
        for item in value:
            yield from unknown_parts(item)
    elif not (value is None or isinstance(value, torch.Tensor | bool | int | float | str)):
        yield value


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def same_values(left: Tensor, right: Tensor) -> bool:
    """Bit by bit, whether tokens lie flat (B*T, H) or not (B, T, H); NaN is the same as NaN."""
    if left.numel() != right.numel() or left.shape[-1] != right.shape[-1]:
        return False
    left, right = left.reshape(-1), right.to(left.device).reshape(-1)  # of a model that is spread, blocks are apart
    return torch.equal(left, right) or (bool(left.isnan().any()) and torch.equal(left.nan_to_num(), right.nan_to_num()))
