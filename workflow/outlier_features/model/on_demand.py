"""Weights that stay on disk: a block's are read when one of its modules is called, and given back afterwards.

A parameter whose weights are not in memory has its shape, dtype and device, and NaN for every value, so that no number
can come of it. Who reads a weight outside a module's own call asks `require_weights` for it.
"""

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from outlier_features.model.weights_of_modules import WeightsOfModules

Tensor = torch.Tensor
_ABSENT: dict[tuple[torch.dtype, torch.device], Tensor] = {}
_OWNERS: "WeakKeyDictionary[nn.Module, OnDemand]" = WeakKeyDictionary()


def require_weights(module: nn.Module) -> None:
    """Have the weights of a module, and of those inside it, in memory until others need the space."""
    if module in _OWNERS:
        _OWNERS[module].require(module)


@dataclass(eq=False)
class _Unit:
    """Parameters that are read together: those of a block, or of a module outside of blocks.

    stays    once read, it is kept: embeddings and the head, which passes of any block run
    read     the memory that each parameter's weights were put in
    """

    number: int
    stays: bool
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
    users: int = 0

    @property
    def bytes(self) -> int:
        return sum(one.numel() * one.element_size() for one in self.parameters.values())


class OnDemand:
    """The weights of a model, whose parameters are placeholders from now on.

    model     on the meta device where weights are to be read, under the names by which `weights` knows them
    budget    bytes of blocks that are kept after use; at least the one that runs and the next one are in memory
    """

    def __init__(self, model: nn.Module, weights: WeightsOfModules, device: torch.device, budget: int):
        self._weights, self._device, self._budget = weights, device, budget
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._coming: dict[_Unit, Future[dict[str, Tensor]]] = {}
        self._loaded: list[_Unit] = []  # in the order of their last use
        self._follower: dict[_Unit, _Unit] = {}
        self._last: _Unit | None = None
        self._units: dict[str, _Unit] = {}
        home = self._put_placeholders(model)
        self._needs = _needs(model, home)
        for module in self._needs:
            _OWNERS[module] = self
            module.forward = MethodType(_reading(self, type(module)), module)

    def __deepcopy__(self, _: Any) -> "OnDemand":
        return self  # a copied module has copies of its weights, and needs none of these

    @property
    def times_read(self) -> float:
        """How often all weights of the checkpoint have been read so far."""
        return self._weights.times_read

    def _put_placeholders(self, model: nn.Module) -> dict[int, _Unit]:
        """Parameters that are read on demand, by identity, with their unit; vectors are read at once and stay."""
        home: dict[int, _Unit] = {}
        placed: dict[int, nn.Parameter] = {}
        vectors = [name for name, one in model.named_parameters() if one.is_meta and one.ndim < 2]
        values = self._weights.read(vectors) if vectors else {}
        for path, module in model.named_modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is None or not parameter.is_meta:
                    continue
                full = f"{path}.{name}".lstrip(".")
                if id(parameter) not in placed:
                    value = values[full].to(self._device) if full in values else _absent(parameter, self._device)
                    placed[id(parameter)] = new = nn.Parameter(value, requires_grad=False)
                    if full not in values:
                        home[id(new)] = self._unit_of(full)
                        home[id(new)].parameters[full] = new
                module._parameters[name] = placed[id(parameter)]
        self._keep_alive = list(placed.values())
        return home

    def _unit_of(self, name: str) -> _Unit:
        listed = _listed(name)
        key = listed or name.rpartition(".")[0]
        return self._units.setdefault(key, _Unit(len(self._units), stays=listed is None))

    def require(self, module: nn.Module) -> None:
        for unit in self._needs.get(module, ()):
            self._load(unit)

    @contextmanager
    def in_use(self, module: nn.Module) -> Iterator[None]:
        """The module's weights are in memory."""
        units = self._needs.get(module, ())
        for unit in units:
            unit.users += 1
        try:
            for unit in units:
                self._load(unit)
            yield
        finally:
            for unit in units:
                unit.users -= 1

    def _load(self, unit: _Unit) -> None:
        if unit in self._loaded:
            if self._loaded[-1] is not unit:
                self._loaded.remove(unit)
                self._loaded.append(unit)
            return
        self._give_back(unit.bytes)
        if unit not in self._coming:
            self._fetch(unit)
        values = self._coming.pop(unit).result()
        with torch.inference_mode(False), torch.no_grad():
            for name, parameter in unit.parameters.items():
                if _is_absent(parameter):  # else somebody has put other weights there meanwhile
                    parameter.data = values[name].to(self._device)
                    unit.read[name] = parameter.data_ptr()
        self._loaded.append(unit)
        if not unit.stays:
            if self._last is not None and self._last.number < unit.number:
                self._follower[self._last] = unit
            self._last = unit
            follower = self._follower.get(unit)
            if follower is not None and follower not in self._loaded and follower not in self._coming:
                self._fetch(follower)

    def _fetch(self, unit: _Unit) -> None:
        self._coming[unit] = self._reader.submit(self._weights.read, list(unit.parameters))

    def _give_back(self, room: int) -> None:
        """Blocks that are not in use, the last used first: passes go through blocks in order, over and over."""
        held = sum(unit.bytes for unit in self._loaded if not unit.stays)
        for unit in reversed(list(self._loaded)):
            if held + room <= self._budget:
                return
            if not unit.stays and not unit.users:
                held -= unit.bytes
                self._loaded.remove(unit)
                for name, parameter in unit.parameters.items():
                    if parameter.data_ptr() == unit.read.get(name):
                        parameter.data = _absent(parameter, self._device)


def _reading(owner: OnDemand, kind: type[nn.Module]) -> Any:
    """The method `forward` of a module that has its weights read first."""

    @wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with owner.in_use(self):
            return kind.forward(self, *args, **kwargs)

    return forward


def _needs(model: nn.Module, home: dict[int, _Unit]) -> dict[nn.Module, list[_Unit]]:
    """The units of each module that has any: of all that is inside it, or its own alone where it holds blocks."""
    needs: dict[nn.Module, list[_Unit]] = {}
    for path, module in model.named_modules():
        holds_blocks = not _listed(path) and any(_listed(name) for name, _ in module.named_modules())
        own = module.parameters(recurse=not holds_blocks)
        found = {id(home[id(one)]): home[id(one)] for one in own if id(one) in home}
        if found:
            needs[module] = list(found.values())
    return needs


def _listed(path: str) -> str | None:
    """The path of the block that something lies in: of lists in one another, a member of the outermost."""
    found = re.match(r"(?:.*?\.)?\d+(?=\.|$)", path)
    return found.group() if found else None


def _absent(parameter: Tensor, device: torch.device) -> Tensor:
    """A placeholder, which takes the memory of one value."""
    key = parameter.dtype, device
    if key not in _ABSENT:
        value = float("nan") if parameter.is_floating_point() else 0
        with torch.inference_mode(False):
            _ABSENT[key] = torch.full((1,), value, dtype=parameter.dtype, device=device)
    return _ABSENT[key].expand(parameter.shape)


def _is_absent(parameter: Tensor) -> bool:
    one = _ABSENT.get((parameter.dtype, parameter.device))
    return one is not None and parameter.data_ptr() == one.data_ptr()
