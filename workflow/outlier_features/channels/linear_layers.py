"""The linear layers of a model, what each reads, and which read the same: by structure, seen in a pass of the probe.

Quantizers round the input of every linear layer and its weight. Layers that read one tensor (queries, keys and values;
gate and up) share its statistics, and a scale that is moved from one to the others. What routes tokens to experts is no
layer here: quantizers leave it as it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from outlier_features.experts.moe_layers import expert_neurons
from outlier_features.model.bases import SITES
from outlier_features.model.hooks import hooks
from outlier_features.model.models import LoadedModel, holds_experts, probe_ids
from outlier_features.model.on_demand import require_weights
from outlier_features.model.sites import Block, Site, hooked
from outlier_features.model.tensors import first_tensor, same_values

Tensor = torch.Tensor
# Sites that a linear layer may read; where two are one tensor, the first names it.
_READ_SITES = sorted(SITES, key=lambda site: (not site.endswith(("_norm", "_heads", "_act")), SITES.index(site)))
_NOT_RUN = "it did not run in the probe, or not sequence by sequence"


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A linear layer, or that of all experts whose matrices lie in one tensor.

    name       transformers' name of the module, or of the tensor of all experts: what quantizers call it
    module     that holds its weights, in its parameter `parameter`
    transposed the weights are [in, out] instead of [out, in]
    experts    how many; 0 of a layer that every token goes through
    rows       out of its matrix, `width` in
    """

    name: str
    module: nn.Module
    parameter: str
    transposed: bool
    experts: int
    rows: int
    width: int

    @property
    def weight(self) -> nn.Parameter:
        """As the module has it, in memory until others need the space."""
        require_weights(self.module)
        found: nn.Parameter = getattr(self.module, self.parameter)
        return found

    def matrix(self, expert: int | None = None) -> Tensor:
        """A copy in float32 of its weights, (out, in) whatever the module's layout."""
        weight = self.weight.detach()
        own = weight if expert is None else weight[expert]
        return (own.mT if self.transposed else own).to(torch.float32, copy=True).contiguous()

    def put(self, matrix: Tensor, expert: int | None = None) -> Tensor:
        """`matrix` (out, in) in the layout and dtype of the module's own weight."""
        own = matrix.mT if self.transposed else matrix
        return own.to(self.weight.dtype).contiguous()


@dataclass(frozen=True, eq=False)
class LinearInput:
    """A tensor that one linear layer or several read.

    layer    the block; None: what the head reads
    site     its name among the sites of the block, if it has one
    layers   that read it, in the order in which they do
    """

    layer: int | None
    site: str | None
    layers: tuple[LinearLayer, ...]

    @property
    def name(self) -> str:
        return self.layers[0].name

    @property
    def width(self) -> int:
        return self.layers[0].width

    @property
    def experts(self) -> int:
        return self.layers[0].experts


@dataclass(frozen=True)
class Rows:
    """Some rows of a linear layer's input.

    values      (n, width), the model's own memory where it can be
    positions   int64 (n,), where each lies in the flattened batch
    experts     int64 (n,), of an input of experts the one that reads the row: a row is there once for each
    """

    values: Tensor
    positions: Tensor
    experts: Tensor | None = None


@dataclass(frozen=True)
class LinearInputs:
    """Of a model.

    inputs   in the order of blocks, and of calls in a block; last that of the head
    absent   by the name of a layer, why nothing is said of it
    body     whose output the head reads
    """

    inputs: tuple[LinearInput, ...]
    absent: Mapping[str, str]
    body: nn.Module

    @property
    def layers(self) -> list[LinearLayer]:
        return [layer for one in self.inputs for layer in one.layers]

    @contextmanager
    def listening(
        self,
        receive: Callable[[LinearInput, Rows], None],
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Iterator[None]:
        """While the model runs on (B, T) tokens without its head, hand on each input once it is there.

        guard   around all that is done in the model's pass, which may keep what fails there from it
        """
        before: list[Any] = []
        after: list[Any] = []
        experts: dict[nn.Module, list[LinearInput]] = {}
        for one in self.inputs:
            first = one.layers[0]
            if one.layer is None:
                after.append((self.body, _guarded(_handing_on(one, receive), guard)))
            elif one.experts:
                experts.setdefault(first.module, []).append(one)
            else:
                before.append((first.module, _guarded(_handing_on(one, receive), guard)))
        before += [(module, _guarded(_of_experts(inputs, receive), guard)) for module, inputs in experts.items()]
        with hooks(before, after):
            yield


def find_linear_inputs(loaded: LoadedModel, blocks: Sequence[Block]) -> LinearInputs:
    """The inputs of all linear layers of a model's blocks, and of its head where it predicts the next token.

    blocks   with their sites, see `find_sites`
    """
    found = {n: _layers_of(loaded, block) for n, block in enumerate(blocks)}
    named = {id(layer.module): layer for n in found for layer in found[n] if not layer.experts}
    read, sites = _probe(loaded, blocks, [*named.values()])
    tokens = loaded.probe_shape.numel()
    inputs: list[LinearInput] = []
    absent: dict[str, str] = {}
    taken: set[str] = set()
    for n, layers in found.items():
        groups: list[tuple[Tensor, list[LinearLayer]]] = []
        for layer in layers:
            if (
                layer.name in taken
            ):  # a block that runs several times is another block each time, with one set of layers
                continue
            taken.add(layer.name)
            if layer.experts:
                site = "mlp_norm" if layer.parameter != "down_proj" and "mlp_norm" in blocks[n].sites else None
                inputs.append(LinearInput(n, site, (layer,)))
                continue
            value = read.get(layer.name)
            if value is None or value.numel() != tokens * layer.width:
                absent[layer.name] = _NOT_RUN if value is None else "it does not read each token once"
                continue
            same = next((its for other, its in groups if same_values(other, value)), None)
            if same:
                same.append(layer)
            else:
                groups.append((value, [layer]))
        for value, readers in groups:
            site = next((s for s in _READ_SITES if (n, s) in sites and same_values(sites[n, s], value)), None)
            inputs.append(LinearInput(n, site, tuple(readers)))
    if head := _head(loaded):
        inputs.append(LinearInput(None, None, (head,)))
    return LinearInputs(tuple(inputs), absent, loaded.body)


def _layers_of(loaded: LoadedModel, block: Block) -> list[LinearLayer]:
    inside = list(loaded.model.get_submodule(block.path).named_modules(prefix=block.path))
    experts = {name: module for name, module in inside if block.routed and holds_experts(module)}
    counts = {next(p.shape[0] for p in one.parameters(recurse=False) if p.ndim == 3) for one in experts.values()}
    beside = tuple(f"{name.rpartition('.')[0]}." for name in experts)
    layers: list[LinearLayer] = []
    for name, module in inside:
        if name in experts and hasattr(module, "is_transposed"):
            layers += _of_all_experts(name, module)
        elif isinstance(module, nn.Linear | Conv1D):
            rows, width = _shape(module)
            routes = name.startswith(beside) and rows in counts | {1}  # to experts, or to the shared one
            if not routes:
                layers.append(LinearLayer(name, module, "weight", isinstance(module, Conv1D), 0, rows, width))
    return layers


def _of_all_experts(name: str, module: Any) -> Iterator[LinearLayer]:
    for parameter in ("gate_up_proj" if module.has_gate else "up_proj", "down_proj"):
        count, one, other = getattr(module, parameter).shape
        rows, width = (other, one) if module.is_transposed else (one, other)
        yield LinearLayer(f"{name}.{parameter}", module, parameter, module.is_transposed, count, rows, width)


def _shape(module: Any) -> tuple[int, int]:
    rows, width = module.weight.shape
    return (width, rows) if isinstance(module, Conv1D) else (rows, width)


@torch.inference_mode()
def _probe(
    loaded: LoadedModel, blocks: Sequence[Block], layers: Sequence[LinearLayer]
) -> tuple[dict[str, Tensor], dict[tuple[int, str], Tensor]]:
    """What each layer, and each site of each block, is on the probe: (B*T, H)."""
    read: dict[str, Tensor] = {}
    sites: dict[tuple[int, str], Tensor] = {}

    reverse = loaded.probe_shape[::-1]

    def keep(name: str, value: Tensor | None) -> None:
        if value is not None and value.shape[:-1] != reverse:  # whose positions would be others
            read.setdefault(name, value.reshape(-1, value.shape[-1]).clone())

    def keep_site(key: tuple[int, str], value: Tensor) -> None:
        sites[key] = value.reshape(-1, value.shape[-1]).clone()

    of_layers = [(one.name, Site(one.name, one.module, "in", one.width)) for one in layers]
    of_sites = [((n, name), site) for n, block in enumerate(blocks) for name, site in block.sites.items()]
    with hooked(of_layers, keep), hooked(of_sites, keep_site):
        loaded.probe()
    return read, sites


@torch.inference_mode()
def _head(loaded: LoadedModel) -> LinearLayer | None:
    """The head, where it is linear and reads what the body returns."""
    head = loaded.model.get_output_embeddings() if loaded.has_causal_head and not loaded.part else None
    if not isinstance(head, nn.Linear):
        return None
    read: dict[str, Tensor] = {}
    name = next(name for name, module in loaded.model.named_modules() if module is head)
    sites = [("head", Site(name, head, "in", 0)), ("body", Site("body", loaded.body, "out", 0))]
    with hooked(sites, lambda key, value: read.update({key: value.clone()})):
        loaded.model(input_ids=probe_ids(loaded.model))
    if not same_values(read["head"], read["body"]):
        return None
    return LinearLayer(name, head, "weight", False, 0, *_shape(head))


def _guarded(hand_on: Callable[..., None], guard: Callable[[], AbstractContextManager[None]]) -> Callable[..., None]:
    def guarded(*call: Any) -> None:
        with guard():
            hand_on(*call)

    return guarded


def _handing_on(one: LinearInput, receive: Callable[[LinearInput, Rows], None]) -> Callable[..., None]:
    def hand_on(module: nn.Module, args: Any, kwargs: Any, *output: Any) -> None:
        value = first_tensor(output or (args, kwargs))
        flat = value.detach().reshape(-1, value.shape[-1])
        receive(one, Rows(flat, torch.arange(len(flat), device=flat.device)))

    return hand_on


def _of_experts(
    inputs: Sequence[LinearInput], receive: Callable[[LinearInput, Rows], None]
) -> Callable[[nn.Module, Any, Any], None]:
    """What the experts of a module read, made beside the model's own call, of which it changes nothing."""

    def hand_on(module: nn.Module, args: Any, kwargs: Any) -> None:
        require_weights(module)
        hidden, index = (*args, *kwargs.values())[:2]
        calls = list(expert_neurons(module, hidden, index))
        positions = torch.cat([rows for _, rows, _, _ in calls])
        experts = torch.cat([torch.full_like(rows, expert) for expert, rows, _, _ in calls])
        for one in inputs:
            down = one.layers[0].parameter == "down_proj"
            values = torch.cat([neurons for *_, neurons in calls]) if down else hidden[positions]
            receive(one, Rows(values.detach(), positions, experts))

    return hand_on
