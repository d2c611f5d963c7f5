"""What is done to a model in memory while it runs, and undone afterwards: dims set to values, weights scaled."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from outlier_features.model.on_demand import require_weights
from outlier_features.model.placement import beside
from outlier_features.model.sites import Site, hooked


@dataclass(frozen=True)
class Edit:
    """The `dims` of a site's tensor and the values that they are set to, one each, or (B, T, dims) one each position.

    The site is a module's output, or the input of attention's last matrix: other inputs may be read by more modules.
    """

    site: Site
    dims: tuple[int, ...]
    values: tuple[float, ...] | torch.Tensor


def edited(
    edits: Iterable[Edit], where: torch.Tensor, past: Mapping[nn.Module, int] = MappingProxyType({})
) -> AbstractContextManager[None]:
    """While the model runs, each edit's dims have its values at the positions `where`, bool (B, T).

    past   calls of modules that are left out at the beginning of the pass
    """

    def change(edit: Edit, x: torch.Tensor) -> None:
        here = beside(where, x).reshape(x.shape[:-1])[..., None]
        values = torch.as_tensor(edit.values, dtype=x.dtype, device=x.device)
        if values.ndim > 1:
            values = values.reshape(*x.shape[:-1], -1)
        x[..., list(edit.dims)] = torch.where(here, values, x[..., list(edit.dims)])

    return hooked([(edit, edit.site) for edit in edits], change, past)


def weight_at(module: nn.Module, row: int, col: int) -> float:
    """The weight from input `col` to output `row` of a linear layer."""
    return float(weight_of(module).data[_index(module, row, col)])


@contextmanager
def scaling() -> Iterator[Callable[[nn.Module, int, int, float], None]]:
    """Hands out `scale(module, row, col, factor)`; when the block ends, however it ends, every weight is what it was.

    The factor is of the weight as it was loaded. Nothing is written where a weight was loaded, which may be a map of
    the model's file: the module gets a copy to write to, and in the end its own memory back.
    """
    loaded: dict[int, tuple[nn.Parameter, torch.Tensor]] = {}

    def scale(module: nn.Module, row: int, col: int, factor: float) -> None:
        weight, at = weight_of(module), _index(module, row, col)
        if id(weight) not in loaded:
            loaded[id(weight)] = weight, weight.data
            weight.data = weight.data.clone()
        weight.data[at] = loaded[id(weight)][1][at] * factor if factor else 0

    try:
        yield scale
    finally:
        for weight, data in loaded.values():
            weight.data = data


def weight_of(module: nn.Module) -> nn.Parameter:
    """The matrix of a linear layer."""
    require_weights(module)
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _index(module: nn.Module, row: int, col: int) -> tuple[int, int]:
    return (col, row) if isinstance(module, Conv1D) else (row, col)  # Conv1D keeps [in, out]
