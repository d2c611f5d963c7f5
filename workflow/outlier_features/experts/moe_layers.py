"""Mixture-of-experts blocks: what each expert writes while the model runs, and proof that it is what it says.

transformers keeps a block's experts in one module with a tensor for all of them, and lets the function that runs such
modules be chosen (`ALL_EXPERTS_FUNCTIONS`). `recording` chooses one that hands on each expert's output before the
router's weight is applied, and adds the same sums up. Which module is the shared expert, and which its gate, follows
from the sum that comes out: routed experts, plus at most one other module, plain or times the sigmoid of a gate.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from outlier_features.errors import InputError
from outlier_features.model.models import LoadedModel, holds_experts, probe_ids
from outlier_features.model.on_demand import require_weights
from outlier_features.model.sites import Block, Site, hooked
from outlier_features.model.verify_sites import Identity, verify_sites

Tensor = torch.Tensor
ExpertsFunction = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
# Of the name of a parameter, the expert, what its matrix is to be multiplied with (n, in), and which rows these are.
Product = Callable[[str, int, Tensor, Tensor], Tensor]
_NAME = "outlier_features"


@dataclass(frozen=True)
class ExpertCall:
    """What one expert made of the tokens that were routed to it.

    rows     int64 (n,), which rows of the flattened batch these tokens are
    output   (n, H), `expert_out`: of the down projection with its bias (and after a norm inside the expert, if any)
    weight   (n,), the router's
    neurons  (n, M), what the down projection reads
    """

    experts: nn.Module
    expert: int
    rows: Tensor
    output: Tensor
    weight: Tensor
    neurons: Tensor


@dataclass(frozen=True)
class MoeLayer:
    """A block with experts.

    experts      the module that holds the routed ones, `count` of them
    chosen       how many of these the router chooses for a token
    whole        the sum of all parts, before a post-norm
    shared       output of the shared expert, if there is one
    gate         what the sigmoid is taken of that multiplies it, if there is one
    shared_act   what the linear layer reads that makes the shared expert's output, if one does: its neurons
    mlp_out      what is added to the residual stream
    """

    layer: int
    experts: nn.Module
    count: int
    chosen: int
    whole: Site
    shared: Site | None
    gate: Site | None
    shared_act: Site | None
    mlp_out: Site

    @property
    def unused(self) -> int:
        """Parameters of the routed experts that a token is not sent to; each expert has as many."""
        own = sum(parameter.numel() for parameter in self.experts.parameters(recurse=False))
        return own // self.count * (self.count - self.chosen)


@dataclass(frozen=True)
class Routed:
    """The blocks with experts, or in `absent` why nothing can be said of `expert_out`."""

    layers: tuple[MoeLayer, ...]
    absent: str | None = None


def run_experts(
    module: nn.Module,
    hidden: Tensor,
    index: Tensor,
    weight: Tensor,
    receive: Callable[[ExpertCall], None],
    product: Product | None = None,
) -> Tensor:
    """The routed experts' weighted sum (rows, H), one expert after the other; each output goes to `receive`.

    hidden          (rows, H)
    index, weight   (rows, k), the experts chosen for each row
    product         in the place of the matrices' own
    """
    m: Any = module
    product = product or own_product(module)
    total = torch.zeros_like(hidden, dtype=torch.float32)
    for expert, rows, slot, neurons in expert_neurons(module, hidden, index, product):
        output = product("down_proj", expert, neurons, rows)
        if m.has_bias:
            output = output + m.down_proj_bias[expert]
        if m.has_post_expert_norm:
            output = m.post_expert_norm(output)
        chosen = weight[rows, slot]
        receive(ExpertCall(module, expert, rows, output, chosen, neurons))
        total.index_add_(0, rows, (output * chosen[:, None]).float())
    return total.to(hidden.dtype)


def own_product(module: nn.Module) -> Product:
    """With the module's own matrices, without bias."""

    def multiply(name: str, expert: int, value: Tensor, rows: Tensor) -> Tensor:
        matrix = getattr(module, name)[expert]
        return value @ (matrix if module.is_transposed else matrix.mT)

    return multiply


def expert_neurons(
    module: nn.Module, hidden: Tensor, index: Tensor, product: Product | None = None
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Each expert that is chosen: its number, the rows that choose it in order, the choice of each that it is, and what
    its down projection reads (n, M).

    hidden   (rows, H)
    index    (rows, k), the experts chosen for each row
    product  in the place of the matrices' own
    """
    m: Any = module
    product = product or own_product(module)
    for expert in index.unique().tolist():
        rows, slot = torch.where(index == expert)
        pre = product("gate_up_proj" if m.has_gate else "up_proj", expert, hidden[rows], rows)
        if m.has_bias:
            pre = pre + (m.gate_up_proj_bias if m.has_gate else m.up_proj_bias)[expert]
        yield expert, rows, slot, m._apply_gate(pre) if m.has_gate else m.act_fn(pre)


def neuron_hook(receive: Callable[[int, Tensor, Tensor], None]) -> Callable[[nn.Module, Any, Any, Any], None]:
    """A hook to stand behind a block's experts: hands on each chosen expert's number, the rows that choose it and what
    its down projection reads, made beside the model's own call, of which it changes nothing."""

    def hand_on(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        require_weights(module)
        hidden, index = (*args, *kwargs.values())[:2]
        for expert, rows, _, neurons in expert_neurons(module, hidden, index):
            receive(expert, rows, neurons)

    return hand_on


@contextmanager
def recording(model: PreTrainedModel, receive: Callable[[ExpertCall], None]) -> Iterator[None]:
    """While the model runs, hand each routed expert's output to `receive`, block by block, expert by expert."""

    def run(module: nn.Module, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return run_experts(module, hidden, index, weight, receive)

    with _experts_run_by(model, run):
        yield


@contextmanager
def _experts_run_by(model: PreTrainedModel, function: ExpertsFunction) -> Iterator[None]:
    """No effect on modules that are not behind transformers' interface."""
    before = model.get_experts_implementation()
    ALL_EXPERTS_FUNCTIONS[_NAME] = function
    model.set_experts_implementation(_NAME)
    try:
        yield
    finally:
        model.set_experts_implementation(before)
        del ALL_EXPERTS_FUNCTIONS[_NAME]


def find_moe_layers(loaded: LoadedModel, blocks: list[Block]) -> Routed:
    """The blocks with experts and their parts, each checked on a few probe tokens.

    Two identities must hold in every block with experts, to the rounding of a matrix product: the weighted sum of what
    is recorded is what the model's own implementation gives, and all parts sum to the MLP's output; and `mlp_out` must
    be what is added to the residual stream. Where one fails, nothing is said of any expert: a rank among some of them
    would be another number.
    """
    indices = [index for index, block in enumerate(blocks) if block.routed]
    if not indices:
        return Routed((), "no block routes tokens to experts")
    try:
        modules = {index: _experts_of(loaded, blocks[index], index) for index in indices}
        verify_sites(loaded, blocks, ["mlp_out"])
        with torch.inference_mode():
            probe = _run_probe(loaded, blocks, modules)
            return Routed(tuple(_describe(blocks[i], i, modules[i], probe) for i in indices))
    except _Unproven as error:
        return Routed((), str(error))
    except InputError as error:  # of verify_sites
        return Routed((), f"mlp_out is not proven: {error.found}")


class _Unproven(Exception):
    """Why the experts of a model cannot be recorded."""


def _experts_of(loaded: LoadedModel, block: Block, index: int) -> str:
    """The path of the block's one module of experts."""
    inside = loaded.model.get_submodule(block.path).named_modules()
    found = [(name, module) for name, module in inside if holds_experts(module)]
    behind_interface = hasattr(found[0][1], "is_transposed") if len(found) == 1 else False
    if not behind_interface:
        kinds = ", ".join(sorted({type(module).__name__ for _, module in found})) or "modules of their own"
        raise _Unproven(
            f"the experts of block {index} ({kinds}) are not one module behind transformers' experts interface"
        )
    if "mlp_out" not in block.sites:
        raise _Unproven(f"mlp_out of block {index} is absent: {block.absent['mlp_out']}")
    return f"{block.path}.{found[0][0]}"


@dataclass(frozen=True)
class _ProbedExperts:
    """Of the probe's pass: what the experts' modules read and gave, and the output of every module beside them."""

    model: PreTrainedModel
    calls: dict[nn.Module, tuple[Tensor, Tensor, Tensor, Tensor]]
    outputs: dict[str, Tensor]
    sites: dict[str, Site]


def _run_probe(loaded: LoadedModel, blocks: list[Block], modules: dict[int, str]) -> _ProbedExperts:
    calls, outputs, sites = {}, {}, {}
    for index, path in modules.items():
        holder = _holder(blocks[index], path)
        for name, module in loaded.model.get_submodule(holder).named_modules(prefix=holder):
            if not f"{name}.".startswith(f"{path}."):
                sites[name] = Site(name, module, "out", 0)

    def run(module: nn.Module, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        total = run_experts(module, hidden, index, weight, lambda call: None)
        calls[module] = hidden.clone(), index.clone(), weight.clone(), total
        return total

    def receive(path: str, value: Tensor | None) -> None:
        if value is not None:
            outputs[path] = value.reshape(-1, value.shape[-1]).clone()

    with _experts_run_by(loaded.model, run), hooked(sites.items(), receive):
        loaded.base(probe_ids(loaded.model))
    return _ProbedExperts(loaded.model, calls, outputs, sites)


def _holder(block: Block, path: str) -> str:
    """The block's own child that the experts lie in: the MLP."""
    child = path.removeprefix(f"{block.path}.").partition(".")[0]
    return f"{block.path}.{child}"


def _describe(block: Block, index: int, path: str, probe: _ProbedExperts) -> MoeLayer:
    experts = probe.model.get_submodule(path)
    if experts not in probe.calls:
        raise _Unproven(f"the experts of block {index} ({type(experts).__name__}) ran past transformers' interface")
    hidden, chosen, weight, routed = probe.calls[experts]
    own = experts(hidden, chosen, weight)
    if not Identity("", (), own, routed).holds():
        raise _Unproven(f"the recorded experts of block {index} do not sum to what their module gives")
    holder = _holder(block, path)
    whole = probe.outputs[holder]
    inside = [name for name in probe.sites if name in probe.outputs and name.startswith(f"{holder}.")]
    candidates = [
        (shared, gate, Identity("", (), whole, _sum_of_parts(routed, shared, gate, probe.outputs)))
        for shared, gate in _candidates(inside, probe.outputs, whole.shape[-1])
    ]
    shared, gate, best = min(candidates, key=lambda candidate: candidate[2].worst()[0])
    if not best.holds():
        raise _Unproven(f"the experts of block {index} and no one module beside them sum to the output of {holder}")
    count = int(next(p for p in experts.parameters(recurse=False) if p.ndim == 3).shape[0])
    find = probe.sites.get
    return MoeLayer(
        index, experts, count, chosen.shape[1], probe.sites[holder], find(shared), find(gate),
        _read_last(shared, probe) if shared else None, block.sites["mlp_out"],
    )  # fmt: skip


def _read_last(shared: str, probe: _ProbedExperts) -> Site | None:
    """The input of the linear layer inside a module whose output is the module's, bit by bit."""
    for name, site in probe.sites.items():
        weight: Any = getattr(site.module, "weight", None)
        if not name.startswith(f"{shared}.") or weight is None or weight.ndim != 2:
            continue
        if name in probe.outputs and torch.equal(probe.outputs[name], probe.outputs[shared]):
            return Site(name, site.module, "in", weight.numel() // probe.outputs[name].shape[-1])
    return None


def _sum_of_parts(routed: Tensor, shared: str, gate: str, outputs: dict[str, Tensor]) -> Tensor:
    if not shared:
        return routed
    return routed + (outputs[gate].sigmoid() * outputs[shared] if gate else outputs[shared])


def _candidates(inside: list[str], outputs: dict[str, Tensor], width: int) -> Iterator[tuple[str, str]]:
    """Names of a shared expert and its gate that may account for the sum, the simplest first."""
    yield "", ""
    shared = [name for name in inside if outputs[name].shape[-1] == width]
    gates = [name for name in inside if outputs[name].shape[-1] == 1]
    yield from ((name, "") for name in shared)
    yield from ((name, gate) for name in shared for gate in gates)
