"""Where in a block each activation is found: by structure, not by a table of architectures.

One forward pass over a few probe tokens records what went in and out of every module of a block (`block_calls`). Which
parts of it are attention, another mixer or an MLP follows from what they do (`sublayers`); which module is the norm
before one, its output projection and so on, from who reads whose output, bit by bit: a norm before a sublayer is the
module whose output its first matrix reads, a norm after it reads the output of its last.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from outlier_features.errors import InputError
from outlier_features.model.bases import NO_OTHER_MIXER, RESIDUAL_BASIS, SITES
from outlier_features.model.block_calls import Call, by_token, recorded_blocks
from outlier_features.model.hooks import hooks
from outlier_features.model.models import overflow_hint
from outlier_features.model.probed import Probed
from outlier_features.model.stack import BlockCall
from outlier_features.model.sublayers import Sublayer, sublayers
from outlier_features.model.tensors import first_tensor, same_values

ATTENTION_SITES = ("attn_norm", "attn_heads", "attn_out")
MIXER_SITES = ("mixer_norm", "mixer_out")
MLP_SITES = ("mlp_norm", "mlp_out", "mlp_pre", "mlp_act", "mlp_down")
NEURON_SITES = ("mlp_pre", "mlp_act", "mlp_down")

Key = TypeVar("Key")
Side = Literal["in", "out"]


@dataclass(frozen=True)
class Site:
    """A tensor in a model: the input or output of the module at `path`, `width` values a token.

    call         of the module's `calls` calls in a pass
    time_major   the tensor is (T, B, H)
    """

    path: str
    module: nn.Module
    side: Side
    width: int
    call: int = 0
    calls: int = 1
    time_major: bool = False


@dataclass
class Block:
    """A block: its sites, a reason for each site that it lacks, and what relates the sites to each other.

    follows        it reads what the block before it wrote
    parallel       attention (or the mixer) and the MLP both read the block's input
    closing_norm   the norm that makes the block's output from the residual sum (post-LN models)
    inputs         by the site of a norm, the inputs of the linear layers of the sublayer after it, in order
    mixed          by name, what the block's sublayers that mix tokens add to the stream; None if one is not known
    next_norms     of each sublayer that mixes tokens but the first: the output of the norm that feeds it, if one does
    later          inputs of the modules that run after the MLP
    mlp_linears    outputs of a dense MLP's linear layers, in the order of calls
    activation     the module that reads `mlp_pre`
    routed         not every token goes through the same matrices of the MLP: it has experts
    nested         the sublayers lie in blocks of their own, which may read something else than the stream
    attends        one of its parts mixes tokens by softmax weights; None where a part could not be tried
    """

    path: str
    sites: dict[str, Site] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    follows: bool = True
    parallel: bool = False
    closing_norm: nn.Module | None = None
    inputs: dict[str, list[Site]] = field(default_factory=dict)
    mixed: dict[str, Site] | None = field(default_factory=dict)
    next_norms: list[Site | None] = field(default_factory=list)
    later: list[Site] = field(default_factory=list)
    mlp_linears: list[Site] = field(default_factory=list)
    activation: nn.Module | None = None
    routed: bool = False
    nested: bool = False
    attends: bool | None = None


def find_sites(loaded: Probed) -> list[Block]:
    """The blocks of a model, in order, with their sites.

    Raises `InputError` where the probe's activations are not finite.
    """
    blocks: list[Block] = []

    def describe(block: BlockCall, calls: list[Call]) -> None:
        blocks.append(_describe(block, calls, loaded))

    with recorded_blocks(loaded.stack.blocks, loaded.probe_shape, describe), torch.inference_mode():
        loaded.probe()
    _lack_odd_widths(blocks)
    return blocks


def hooked(
    sites: Iterable[tuple[Key, Site]],
    receive: Callable[[Key, torch.Tensor], None],
    past: Mapping[nn.Module, int] = MappingProxyType({}),
) -> AbstractContextManager[None]:
    """While the model runs, hand each site's tensor, (B, T, H) or (B*T, H), to `receive(key, tensor)`.

    The tensor is the model's own, which may go on to change it in place: `receive` copies what it keeps. What `receive`
    changes in place, the model goes on with.

    past   calls of modules that are left out at the beginning of the pass
    """
    of_side: dict[str, list[Any]] = {"in": [], "out": []}
    for key, site in sites:
        of_side[site.side].append((site.module, _handing_on(site, key, receive, past.get(site.module, 0))))
    return hooks(before=of_side["in"], after=of_side["out"])


def _handing_on(site: Site, key: Key, receive: Callable[[Key, torch.Tensor], None], number: int) -> Callable[..., None]:

    def hand_on(module: nn.Module, args: Any, kwargs: Any, *output: Any) -> None:
        nonlocal number
        if number % site.calls == site.call:
            tensor = first_tensor(output or (args, kwargs))
            receive(key, tensor.transpose(0, 1) if site.time_major else tensor)
        number += 1

    return hand_on


def _lack_odd_widths(blocks: list[Block]) -> None:
    """A site is one tensor a block, so its width is that of most blocks; elsewhere it is another basis."""
    for site in SITES:
        widths = Counter(block.sites[site].width for block in blocks if site in block.sites)
        usual = max(widths, key=lambda width: (widths[width], -width), default=None)
        for block in blocks:
            if site in block.sites and (width := block.sites[site].width) != usual:
                del block.sites[site]
                block.absent[site] = f"it is {width} wide here, {usual} in most blocks"


def _describe(place: BlockCall, calls: list[Call], loaded: Probed) -> Block:
    """A block from the calls inside it."""
    *inner, whole = calls
    if count := int((~whole.output.isfinite()).sum()):
        raise InputError(
            f"dtype: {whole.output.dtype} gives {count} values that are not finite in {place.path} (site resid_post) "
            f"on some probe tokens, expected finite activations{overflow_hint(whole.output.dtype)}"
        )
    draft = _Draft(place, whole, loaded.stack.calls)
    draft.add("resid_pre", whole, "in")
    draft.add("resid_post", whole, "out")
    parts = sublayers(inner, loaded.config, crosses=loaded.part == "decoder")
    draft.block.nested = any(part.nested for part in parts)
    draft.block.attends = _attends(parts)
    draft.block.routed = any(part.is_mlp and part.routed for part in parts)
    mixers = [part for part in parts if part.kind in ("attention", "mixer", "cross")]
    _describe_mixers(draft, inner, parts)
    _describe_mlp(draft, inner, parts, mixers)
    return draft.block


def _attends(parts: list[Sublayer]) -> bool | None:
    kinds = {part.kind for part in parts}
    return True if "attention" in kinds else None if "unknown" in kinds else False


def attention_blocks(blocks: list[Block]) -> list[int] | None:
    """Numbers of the blocks that have attention by softmax weights; None where that is not known of every block."""
    if any(block.attends is None for block in blocks):
        return None
    return [number for number, block in enumerate(blocks) if block.attends]


class _Draft:
    """A block in the making."""

    def __init__(self, place: BlockCall, whole: Call, calls: Mapping[nn.Module, int]):
        self.block = Block(place.path, follows=place.follows)
        self.whole = whole
        self._calls = calls

    def site(self, call: Call, side: Side) -> Site:
        value, shape = call.input if side == "in" else call.output, call.shape
        path = f"{self.block.path}.{call.name}".rstrip(".")
        time_major = value.ndim == 3 and value.shape[:2] == shape[::-1]
        width = value.numel() // shape.numel()
        return Site(path, call.module, side, width, call.number, self._calls.get(call.module, 1), time_major)

    def add(self, name: str, call: Call, side: Side) -> bool:
        """Whether the tensor is the site `name`; where it is not, it lacks with a reason."""
        value = call.input if side == "in" else call.output
        where = call.name or "the block"
        if by_token(value, call.shape) is None:
            self.lack(f"{where} has a tensor of shape {_shape(value)} for {_shape(call.shape)} tokens", name)
        elif name in RESIDUAL_BASIS and value.shape[-1] != self.whole.output.shape[-1]:
            width = self.whole.output.shape[-1]
            self.lack(f"{where} is {value.shape[-1]} wide, the residual stream {width}", name)
        else:
            self.block.sites[name] = self.site(call, side)
            return True
        return False

    def lack(self, reason: str, *names: str) -> None:
        self.block.absent |= dict.fromkeys(names, reason)


def _shape(shape: Any) -> str:
    return " x ".join(map(str, getattr(shape, "shape", shape)))


def _describe_mixers(draft: _Draft, inner: list[Call], parts: list[Sublayer]) -> None:
    for kind, names in (("attention", ATTENTION_SITES), ("mixer", MIXER_SITES)):
        found = [part for part in parts if part.kind == kind]
        if len(found) == 1:
            _describe_mixer(draft, inner, found[0], names)
        else:
            draft.lack(_none_or_many(kind, found, parts), *names)
        if len(found) > 1:
            draft.block.mixed = None
    for number, part in enumerate(part for part in parts if part.kind == "cross"):
        if draft.block.mixed is not None:
            draft.block.mixed[f"cross_out.{number}"] = draft.site(_last_in_chain(inner, part.matrices[-1]), "out")
    if any(part.kind == "unknown" for part in parts):
        draft.block.mixed = None
    mixing = [part for part in parts if part.kind in ("attention", "mixer", "cross")]
    for part in mixing[1:]:
        norm = _norm_before(inner, part.matrices[0]) if part.matrices else None
        draft.block.next_norms.append(draft.site(norm, "out") if norm else None)


def _none_or_many(kind: str, found: list[Sublayer], parts: list[Sublayer]) -> str:
    if found:
        return f"the block has {len(found)} parts that are {kind}: {', '.join(part.name for part in found)}"
    unknown = [part.name for part in parts if part.kind == "unknown"]
    if unknown:
        return f"what {', '.join(unknown)} does to each token could not be tried"
    if kind == "mixer":
        return NO_OTHER_MIXER
    others = [part.name for part in parts if part.kind == "mixer"]
    if others:
        return f"{', '.join(others)} mixes tokens, but not by softmax weights"
    return "no part of the block mixes tokens by softmax weights"


def _describe_mixer(draft: _Draft, inner: list[Call], part: Sublayer, names: tuple[str, ...]) -> None:
    norm_site, out_site = names[0], names[-1]
    if part.is_one_module:
        draft.lack(f"{part.name} has no linear layers of its own, so what is inside it is not seen", *names)
        draft.block.mixed = None
        return
    draft.block.inputs[norm_site] = [draft.site(call, "in") for call in part.matrices]
    norm = _norm_before(inner, part.matrices[0])
    if norm:
        draft.add(norm_site, norm, "out")
    else:
        draft.lack(_no_norm(inner, part.matrices[0], part.name), norm_site)
    last = part.matrices[-1]
    if not draft.add(out_site, _last_in_chain(inner, last), "out"):
        draft.block.mixed = None
    elif draft.block.mixed is not None:
        draft.block.mixed[out_site] = draft.block.sites[out_site]
    if out_site == "attn_out":
        if out_site in draft.block.sites:
            draft.add("attn_heads", last, "in")
        else:
            draft.lack("the last matrix of attention does not write the residual stream", "attn_heads")


def _describe_mlp(draft: _Draft, inner: list[Call], parts: list[Sublayer], mixers: list[Sublayer]) -> None:
    found = [part for part in parts if part.is_mlp]
    if len(found) != 1:
        unknown = [part.name for part in parts if part.kind == "unknown"]
        loose = [part.name for part in parts if part.kind == "linear"]
        names = ", ".join(part.name for part in found)
        reason = f"the block has {len(found)} parts that treat each token alone by matrices: {names}"
        if not found:
            reason = "the block has no MLP"
            if unknown:
                reason = f"what {', '.join(unknown)} does to each token could not be tried"
            elif loose:
                reason = f"no part of the block is an MLP: {', '.join(loose)} stand alone"
        draft.lack(reason, *MLP_SITES, "resid_mid")
        return
    (mlp,) = found
    _describe_residual(draft, inner, mlp, mixers)
    if mlp.routed:
        _describe_routed_mlp(draft, inner, mlp)
    else:
        _describe_dense_mlp(draft, inner, mlp)
    ended = inner.index(mlp.matrices[-1])
    draft.block.later = [
        draft.site(call, "in") for call in inner[ended + 1 :] if by_token(call.input, call.shape) is not None
    ]


def _describe_residual(draft: _Draft, inner: list[Call], mlp: Sublayer, mixers: list[Sublayer]) -> None:
    """`mlp_norm` and `resid_mid`: what lies between what mixes tokens and the MLP."""
    block, whole, first = draft.block, draft.whole, mlp.matrices[0]
    block.inputs["mlp_norm"] = [draft.site(call, "in") for call in mlp.matrices]
    norm = _norm_before(inner, first)
    if norm:
        draft.add("mlp_norm", norm, "out")
    else:
        draft.lack(_no_norm(inner, first, "the MLP"), "mlp_norm")
    closing = next((call for call in inner if same_values(call.output, whole.output) and call.is_norm()), None)
    block.closing_norm = closing.module if closing else None
    if not mixers:
        draft.lack("the MLP is the block's only sublayer", "resid_mid")
        return
    block.parallel = same_values((norm or first).input, whole.input) or any(
        same_values(first.input, part.matrices[0].input) for part in mixers if part.matrices
    )
    if block.parallel:
        mixing = {"attention": "attention", "mixer": "mixer", "cross": "cross-attention"}[mixers[0].kind]
        draft.lack(f"{mixing} and MLP are parallel", "resid_mid")
    elif norm and closing:
        draft.add("resid_mid", norm, "out")  # post-LN: the stream itself is normed
    else:
        draft.add("resid_mid", norm or first, "in")


def _describe_routed_mlp(draft: _Draft, inner: list[Call], mlp: Sublayer) -> None:
    draft.lack("the MLP routes tokens to experts", *NEURON_SITES)
    if mlp.whole and mlp.whole.output.shape[-1] == draft.whole.output.shape[-1]:
        draft.add("mlp_out", _last_in_chain(inner, mlp.whole), "out")
    else:
        draft.lack("the experts' sum is no module's output", "mlp_out")


def _describe_dense_mlp(draft: _Draft, inner: list[Call], mlp: Sublayer) -> None:
    down = mlp.matrices[-1]
    if down.output.shape[-1] != draft.whole.output.shape[-1]:
        draft.lack("the MLP's last linear layer does not write the residual stream", "mlp_out", *NEURON_SITES)
        return
    draft.add("mlp_act", down, "in")
    draft.add("mlp_down", down, "out")
    draft.add("mlp_out", _last_in_chain(inner, down), "out")
    draft.block.mlp_linears = [draft.site(call, "out") for call in mlp.matrices]
    activation = _activation(inner, mlp.matrices)
    if activation:
        draft.block.activation = activation.module
        draft.add("mlp_pre", activation, "in")
    elif len(mlp.matrices) == 2 and mlp.matrices[0].output.numel() == down.input.numel():
        draft.add("mlp_pre", mlp.matrices[0], "out")
    else:
        draft.lack("no activation module tells the gate from the rest", "mlp_pre")


def _activation(inner: list[Call], mlp: tuple[Call, ...]) -> Call | None:
    """The module that reads a linear layer's output, or half of it (gate and up in one matrix)."""
    written = [call.output for call in mlp[:-1]]
    written += [half for value in written if value.shape[-1] % 2 == 0 for half in value.chunk(2, dim=-1)]
    within = inner[inner.index(mlp[0]) : inner.index(mlp[-1])]
    reads_one = (call for call in within if call.plain and any(same_values(call.input, value) for value in written))
    return next((call for call in reads_one if call.output.shape == call.input.shape), None)


def _norm_before(inner: list[Call], reader: Call) -> Call | None:
    """The module whose output `reader` reads."""
    earlier = inner[: inner.index(reader)]  # of modules around one another, the innermost ends first
    return next((call for call in earlier if call.plain and same_values(call.output, reader.input)), None)


def _no_norm(inner: list[Call], reader: Call, name: str) -> str:
    earlier = inner[: inner.index(reader)]
    writer = next((call for call in earlier if call.name and same_values(call.output, reader.input)), None)
    if writer is None or same_values(writer.input, writer.output):
        return f"no norm of the block feeds {name}"
    return f"{name} reads what {writer.name} writes, which has matrices of its own and is no plain norm"


def _last_in_chain(inner: list[Call], call: Call) -> Call:
    """`call`, or the norm that reads its output: what is added to the residual stream."""
    for later in inner[inner.index(call) + 1 :]:
        if later.plain and same_values(later.input, call.output):
            call = later
    return call
