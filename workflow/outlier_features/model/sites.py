"""Where in a block each activation is found: by structure, not by a table of architectures.

One forward pass over a few probe tokens records what went in and out of every module of a block. Which module is the
norm before attention, the output projection and so on then follows from who reads whose output, bit by bit:

- the blocks are the list of modules, one per layer, that ran in order;
- attention (or whatever else mixes tokens) is the first child of the block with linear layers, if it has two or more;
  its last linear layer is the output projection; all linear layers after it belong to the MLP;
- a norm before them is the module whose output the first linear layer reads; a norm after them reads their output.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from outlier_features.errors import InputError
from outlier_features.model.models import LoadedModel, holds_experts, overflow_hint, probe_ids

SITES = (
    "resid_pre", "resid_mid", "resid_post", "attn_norm", "mlp_norm", "attn_heads", "attn_out", "mlp_out", "mlp_pre",
    "mlp_act", "mlp_down",
)  # fmt: skip
ATTENTION_SITES = ("attn_norm", "attn_heads", "attn_out")
MLP_SITES = ("mlp_norm", "mlp_out", "mlp_pre", "mlp_act", "mlp_down")
NEURON_SITES = ("mlp_pre", "mlp_act", "mlp_down")

Key = TypeVar("Key")
Side = Literal["in", "out"]


@dataclass(frozen=True)
class Site:
    """A tensor in a model: the input or output of the module at `path`, `width` values a token."""

    path: str
    module: nn.Module
    side: Side
    width: int


@dataclass
class Block:
    """A block: its sites, a reason for each site that it lacks, and what relates the sites to each other.

    parallel        attention and MLP both read the block's input
    closing_norm    the norm that makes the block's output from the residual sum (post-LN models)
    attn_inputs     inputs of attention's linear layers, in the order of calls
    mlp_input       input of the MLP's first linear layer
    mlp_linears     outputs of a dense MLP's linear layers, in the order of calls
    activation      the module that reads `mlp_pre`
    routed          not every token goes through the same matrices of the MLP: it has experts
    """

    path: str
    sites: dict[str, Site] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    parallel: bool = False
    closing_norm: nn.Module | None = None
    attn_inputs: list[Site] = field(default_factory=list)
    mlp_input: Site | None = None
    mlp_linears: list[Site] = field(default_factory=list)
    activation: nn.Module | None = None
    routed: bool = False


def find_sites(loaded: LoadedModel) -> list[Block]:
    """The blocks of a model, in order, with their sites.

    Raises `InputError` where no list of blocks ran or the probe's activations are not finite.
    """
    ids = probe_ids(loaded.model)
    blocks: list[Block] = []
    modules = _blocks_that_run(loaded, ids)
    with _calls_of_each(modules, lambda path, calls: blocks.append(_describe(path, calls, ids.shape))):
        _run(loaded, ids)
    return blocks


@contextmanager
def hooked(sites: Iterable[tuple[Key, Site]], receive: Callable[[Key, torch.Tensor], None]) -> Iterator[None]:
    """While the model runs, hand each site's tensor, (B, T, H) or (B*T, H), to `receive(key, tensor)`.

    The tensor is the model's own, which may go on to change it in place: `receive` copies what it keeps. What `receive`
    changes in place, the model goes on with.
    """
    handles = [_hook(site, key, receive) for key, site in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(site: Site, key: Key, receive: Callable[[Key, torch.Tensor], None]) -> Any:
    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        receive(key, first_tensor((args, kwargs)))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        receive(key, first_tensor(output))

    if site.side == "in":
        return site.module.register_forward_pre_hook(before, with_kwargs=True)
    return site.module.register_forward_hook(after)


def first_tensor(value: Any) -> Any:
    """The first floating-point tensor in nested arguments or outputs, or None; `hidden_states` goes before others."""
    if torch.is_tensor(value):
        return value if value.is_floating_point() else None
    if isinstance(value, Mapping):
        value = [value.get("hidden_states"), *value.values()]
    if isinstance(value, (tuple, list)):
        return next((found for item in value if (found := first_tensor(item)) is not None), None)
    return None


def _run(loaded: LoadedModel, ids: torch.Tensor) -> None:
    with torch.inference_mode():
        loaded.base(ids)


def _blocks_that_run(loaded: LoadedModel, ids: torch.Tensor) -> list[tuple[str, nn.Module]]:
    """The model's blocks, with their paths.

    Of the lists as long as the model is deep whose entries ran once each and in order, they are the one that holds the
    most parameters (others hold norms or embeddings).
    """
    lists = {
        path: list(module)
        for path, module in loaded.model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == loaded.blocks
    }
    ran: list[nn.Module] = []
    entries = {entry for modules in lists.values() for entry in modules}
    handles = [entry.register_forward_pre_hook(lambda module, args: ran.append(module)) for entry in entries]
    try:
        _run(loaded, ids)
    finally:
        for handle in handles:
            handle.remove()
    in_order = {
        path: modules
        for path, modules in lists.items()
        if [module for module in ran if module in set(modules)] == modules
    }
    if not in_order or not loaded.blocks:
        raise InputError(
            f"{loaded.model_type}: found no list of {loaded.blocks} modules that run one after the other, expected the "
            "model's blocks"
        )
    path = max(in_order, key=lambda path: sum(p.numel() for module in in_order[path] for p in module.parameters()))
    return [(f"{path}.{index}", module) for index, module in enumerate(in_order[path])]


@dataclass(eq=False)
class _Call:
    """One call of a module, by its name within the block, with copies of what it read and returned."""

    name: str
    module: nn.Module
    input: torch.Tensor
    output: torch.Tensor

    @property
    def child(self) -> str:
        """The block's own child that the module lies in."""
        return self.name.partition(".")[0]

    @property
    def plain(self) -> bool:
        """It multiplies by no matrix, and it does something."""
        return not any(_multiplies(part) for part in self.module.modules()) and not _same(self.input, self.output)


@contextmanager
def _calls_of_each(
    modules: list[tuple[str, nn.Module]], describe: Callable[[str, list[_Call]], None]
) -> Iterator[None]:
    """Record the calls inside each block, in the order in which they end, the block itself last; then `describe` them.

    One block's calls are held at a time: they are every tensor in it.
    """
    handles = []
    running: list[str] = []
    calls: list[_Call] = []

    def watch(path: str, name: str, module: nn.Module) -> None:
        reads: list[torch.Tensor | None] = []

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            if not name:
                running.append(path)
            if running[-1:] == [path]:  # a module may be shared by several blocks
                reads.append(_copy((args, kwargs)))

        def after(_: nn.Module, args: Any, output: Any) -> None:
            if running[-1:] != [path]:
                return
            read, returned = reads.pop(), _copy(output)
            if read is not None and returned is not None:
                calls.append(_Call(name, module, read, returned))
            if not name:
                describe(path, calls.copy())
                calls.clear()
                running.pop()

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))

    for path, block in modules:
        for name, module in block.named_modules():
            watch(path, name, module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copy(value: Any) -> torch.Tensor | None:
    tensor = first_tensor(value)
    return None if tensor is None else tensor.clone()


def _describe(path: str, calls: list[_Call], shape: torch.Size) -> Block:
    """The block at `path` from the calls inside it; `shape` is that of the probe's token ids."""
    *inner, whole = calls
    if count := int((~whole.output.isfinite()).sum()):
        raise InputError(
            f"dtype: {whole.output.dtype} gives {count} values that are not finite in {path} (site resid_post) on some "
            f"probe tokens, expected finite activations{overflow_hint(whole.output.dtype)}"
        )
    draft = _Draft(Block(path), shape)
    draft.add("resid_pre", whole, "in")
    draft.add("resid_post", whole, "out")
    matrices = [call for call in inner if _multiplies(call.module)]
    attention = [call for call in matrices if call.child == matrices[0].child]
    if len(attention) < 2:
        draft.lack("found no child that starts with two linear layers, as attention has", *ATTENTION_SITES, *MLP_SITES)
        draft.lack("attention was not found", "resid_mid")
        return draft.block
    _describe_attention(draft, inner, attention)
    mlp = matrices[matrices.index(attention[-1]) + 1 :]
    if not mlp:
        draft.lack("the block has no MLP", *MLP_SITES, "resid_mid")
        return draft.block
    _describe_residual(draft, inner, attention, mlp, whole)
    if any(_is_routed(call, whole) for call in mlp):
        _describe_routed_mlp(draft, inner, mlp, whole)
    else:
        _describe_dense_mlp(draft, inner, mlp, whole)
    return draft.block


class _Draft:
    """A block in the making."""

    def __init__(self, block: Block, shape: torch.Size):
        self.block = block
        self.shape = shape

    def site(self, call: _Call, side: Side) -> Site:
        value = call.input if side == "in" else call.output
        path = f"{self.block.path}.{call.name}".rstrip(".")
        return Site(path, call.module, side, value.numel() // self.shape.numel())

    def add(self, name: str, call: _Call, side: Side) -> None:
        value = call.input if side == "in" else call.output
        if value.shape[:2] == self.shape or value.shape[:1] == (self.shape.numel(),):
            self.block.sites[name] = self.site(call, side)
        else:
            self.lack(f"{call.name} has no row for each token", name)

    def lack(self, reason: str, *names: str) -> None:
        self.block.absent |= dict.fromkeys(names, reason)


def _describe_attention(draft: _Draft, inner: list[_Call], attention: list[_Call]) -> None:
    draft.block.attn_inputs = [draft.site(call, "in") for call in attention]
    norm = _norm_before(inner, attention[0])
    if norm:
        draft.add("attn_norm", norm, "out")
    else:
        draft.lack("no norm of the block feeds attention", "attn_norm")
    draft.add("attn_heads", attention[-1], "in")
    draft.add("attn_out", _last_in_chain(inner, attention[-1]), "out")


def _describe_residual(
    draft: _Draft, inner: list[_Call], attention: list[_Call], mlp: list[_Call], whole: _Call
) -> None:
    """`mlp_norm` and `resid_mid`: what lies between attention and the MLP."""
    draft.block.mlp_input = draft.site(mlp[0], "in")
    norm = _norm_before(inner, mlp[0])
    if norm:
        draft.add("mlp_norm", norm, "out")
    else:
        draft.lack("no norm of the block feeds the MLP", "mlp_norm")
    closing = next((call for call in inner if call.plain and _same(call.output, whole.output)), None)
    draft.block.closing_norm = closing.module if closing else None
    draft.block.parallel = _same(mlp[0].input, attention[0].input) or _same((norm or mlp[0]).input, whole.input)
    if draft.block.parallel:
        draft.lack("attention and MLP are parallel", "resid_mid")
    elif norm and closing:
        draft.add("resid_mid", norm, "out")  # post-LN: the stream itself is normed
    else:
        draft.add("resid_mid", norm or mlp[0], "in")


def _describe_routed_mlp(draft: _Draft, inner: list[_Call], mlp: list[_Call], whole: _Call) -> None:
    draft.block.routed = True
    draft.lack("the MLP routes tokens to experts", *NEURON_SITES)
    experts = next(call for call in mlp if _is_routed(call, whole))
    module = next((call for call in inner if call.name == experts.child), None)
    if module and module.output.shape[-1] == whole.output.shape[-1]:
        draft.add("mlp_out", _last_in_chain(inner, module), "out")
    else:
        draft.lack("the experts' sum is no module's output", "mlp_out")


def _describe_dense_mlp(draft: _Draft, inner: list[_Call], mlp: list[_Call], whole: _Call) -> None:
    down = mlp[-1]
    if len(mlp) < 2 or down.output.shape[-1] != whole.output.shape[-1]:
        draft.lack("the MLP's last linear layer does not write the residual stream", "mlp_out", *NEURON_SITES)
        return
    draft.add("mlp_act", down, "in")
    draft.add("mlp_down", down, "out")
    draft.add("mlp_out", _last_in_chain(inner, down), "out")
    draft.block.mlp_linears = [draft.site(call, "out") for call in mlp]
    activation = _activation(inner, mlp)
    if activation:
        draft.block.activation = activation.module
        draft.add("mlp_pre", activation, "in")
    elif len(mlp) == 2 and mlp[0].output.numel() == down.input.numel():
        draft.add("mlp_pre", mlp[0], "out")
    else:
        draft.lack("no activation module tells the gate from the rest", "mlp_pre")


def _activation(inner: list[_Call], mlp: list[_Call]) -> _Call | None:
    """The module that reads a linear layer's output, or half of it (gate and up in one matrix)."""
    written = [call.output for call in mlp[:-1]]
    written += [half for value in written if value.shape[-1] % 2 == 0 for half in value.chunk(2, dim=-1)]
    within = inner[inner.index(mlp[0]) : inner.index(mlp[-1])]
    reads_one = (call for call in within if call.plain and any(_same(call.input, value) for value in written))
    return next((call for call in reads_one if call.output.shape == call.input.shape), None)


def _norm_before(inner: list[_Call], reader: _Call) -> _Call | None:
    """The module whose output `reader` reads."""
    earlier = inner[: inner.index(reader)]
    return next((call for call in reversed(earlier) if call.plain and _same(call.output, reader.input)), None)


def _last_in_chain(inner: list[_Call], call: _Call) -> _Call:
    """`call`, or the norm that reads its output: what is added to the residual stream."""
    for later in inner[inner.index(call) + 1 :]:
        if later.plain and _same(later.input, call.output):
            call = later
    return call


def _multiplies(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D)) or holds_experts(module)


def _is_routed(call: _Call, whole: _Call) -> bool:
    """Not every token goes through it, or not through the same matrix."""
    return holds_experts(call.module) or _rows(call.input) != _rows(whole.input)


def _rows(value: torch.Tensor) -> int:
    return value.numel() // value.shape[-1]


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Bit by bit, whether tokens lie flat (B*T, H) or not (B, T, H)."""
    return (
        left.numel() == right.numel()
        and left.shape[-1] == right.shape[-1]
        and torch.equal(left.reshape(-1), right.reshape(-1))
    )
