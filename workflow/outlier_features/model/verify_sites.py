"""Proof, on the model at hand, that each site is the tensor that its name says: identities between a block's tensors.

A wrong number is worse than a crash. The identities are computed by the model's own modules, in its own dtype, on a few
probe tokens, and every value must agree: to the rounding of an addition where the stream adds up, to that of a matrix
product elsewhere. And sites of different names must differ, except where their definitions let them be one tensor.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from outlier_features.errors import InputError
from outlier_features.model.activation import activation_of, possible_ups
from outlier_features.model.hooks import hooks
from outlier_features.model.probed import Probed
from outlier_features.model.sites import Block, Site, hooked
from outlier_features.model.tensors import first_tensor

Tensor = torch.Tensor

# What a value that is computed again may differ by, relative to itself plus the RMS of its row.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Identity:
    """`found` must equal `expected`, or the `sites` are in doubt; `terms`: what `expected` is the sum of, if it is."""

    text: str
    sites: tuple[str, ...]
    found: Tensor
    expected: Tensor
    terms: tuple[Tensor, ...] = ()

    def worst(self) -> tuple[float, float]:
        """The worst difference as a multiple of what is allowed, and the difference itself."""
        if self.found.shape != self.expected.shape:
            return math.inf, math.inf
        found, expected = _exact(self.found), _exact(self.expected)
        if self.terms:
            size = torch.stack([_exact(term).abs() for term in self.terms]).sum(0)
            allowed = 2 * torch.finfo(self.found.dtype).eps * size
        else:
            allowed = TOLERANCE[self.found.dtype] * (expected.abs() + _row_rms(expected))
        difference = (found - expected).abs()
        multiple = torch.where(difference == 0, 0.0, difference / allowed).nan_to_num(torch.inf).flatten()
        at = int(multiple.argmax())
        return float(multiple[at]), float(difference.flatten()[at])

    def holds(self) -> bool:
        return self.worst()[0] <= 1


@dataclass(frozen=True)
class Proof:
    """What the probe says of each site.

    held       by site, the identities that held, with the number of their blocks
    doubtful   by block and site, why the site is not proven there
    """

    held: dict[str, list[str]]
    doubtful: dict[tuple[int, str], str]


def prove_sites(loaded: Probed, blocks: list[Block]) -> Proof:
    """Check the identities of every site of every block on the probe."""
    probe = _run_probe(loaded, blocks)
    held: dict[str, Counter[str]] = defaultdict(Counter)
    doubtful: dict[tuple[int, str], str] = {}
    for index, block in enumerate(blocks):
        proven: dict[str, list[str]] = defaultdict(list)
        failed: dict[str, str] = {}
        for identity in _identities(loaded, blocks, probe, index):
            if identity.holds():
                for site in identity.sites:
                    proven[site].append(identity.text)
            else:
                for site in identity.sites:
                    failed.setdefault(site, _failure(site, index, block, identity))
        failed = _coinciding(block, probe.tensors(index)) | failed
        for site in block.sites:
            wrong = _unusable(probe, index, site, loaded.dtype)
            if reason := wrong or failed.get(site) or (None if proven[site] else _unproven(site, index)):
                doubtful[index, site] = reason
            else:
                held[site].update(proven[site])
    texts = {site: [f"{text} ({n} of {len(blocks)} blocks)" for text, n in its.items()] for site, its in held.items()}
    return Proof(texts, doubtful)


def keep_proven(blocks: list[Block], proof: Proof) -> None:
    """Take the sites that are not proven out of the blocks; they are absent for that reason."""
    for (index, site), reason in proof.doubtful.items():
        del blocks[index].sites[site]
        blocks[index].absent[site] = reason


def verify_sites(loaded: Probed, blocks: list[Block], requested: list[str]) -> dict[str, list[str]]:
    """The identities that held of each site, and in how many blocks.

    Raises `InputError` where a `requested` site is not proven in a block that has it.
    """
    proof = prove_sites(loaded, blocks)
    for (_, site), reason in proof.doubtful.items():
        if site in requested:
            raise InputError(f"sites: {reason}", f"leave {site} out")
    return proof.held


def _failure(site: str, index: int, block: Block, identity: Identity) -> str:
    multiple, difference = identity.worst()
    return (
        f"{site} of block {index} was found at {block.sites[site].path} ({block.sites[site].side}), but "
        f"{identity.text} fails by {difference:.3g}, {multiple:.3g} times what rounding allows"
    )


def _unproven(site: str, index: int) -> str:
    return f"no identity proves {site} of block {index}"


# Pairs that are one tensor where the model has it so: a norm that two sublayers read, no norm after the MLP, a stream
# that is normed itself before the MLP reads it.
_MAY_COINCIDE = {
    frozenset(pair)
    for pair in (
        ("attn_norm", "mlp_norm"), ("attn_norm", "mixer_norm"), ("mixer_norm", "mlp_norm"), ("mlp_out", "mlp_down"),
    )
}  # fmt: skip


def _coinciding(block: Block, tensors: "Tensors") -> dict[str, str]:
    """Sites that are the same tensor as another though they must not be."""
    found: dict[str, str] = {}
    for one, other in combinations(block.sites, 2):
        allowed = {frozenset((one, other))} & _MAY_COINCIDE or (
            block.closing_norm is not None and {one, other} == {"resid_mid", "mlp_norm"}
        )
        if not allowed and torch.equal(tensors[one].flat, tensors[other].flat):
            doubtful = [site for site in (one, other) if site not in ("resid_pre", "resid_post")]
            if any(site.endswith("_norm") for site in doubtful):  # who reads a norm is known, who adds it is not
                doubtful = [site for site in doubtful if not site.endswith("_norm")]
            found |= dict.fromkeys(doubtful, f"{one} and {other} are the same tensor, expected two")
    return found


def _unusable(probe: "_ProbedBlocks", index: int, site: str, dtype: torch.dtype) -> str | None:
    calls = probe.calls[index][site]
    if len(calls) != 1:
        return f"the module of {site} of block {index} ran {len(calls)} times in a pass, expected once"
    if calls[0].value.dtype != dtype:
        return f"{site} of block {index} is {calls[0].value.dtype} in a model of {dtype}, set `dtype: float32`"
    return None


@dataclass(frozen=True)
class _Seen:
    """A tensor as the model has it, (B, T, H) or (B*T, H)."""

    value: Tensor

    @property
    def flat(self) -> Tensor:
        return self.value.reshape(-1, self.value.shape[-1])


Tensors = dict[str, _Seen]  # by site, or by part of a block


@dataclass(frozen=True)
class _ProbedBlocks:
    """The tensors of a pass: by block and site (or part of a block) those of each call, and what the rest made of them.

    first_hidden_state   what transformers reports as the first block's input, if it does
    read, written        what the modules outside the blocks read and returned, and the last hidden state
    """

    calls: list[dict[str, list[_Seen]]]
    first_hidden_state: Tensor | None
    read: list[Tensor]
    written: list[Tensor]

    def tensors(self, index: int) -> Tensors:
        return {name: calls[-1] for name, calls in self.calls[index].items()}


def _run_probe(loaded: Probed, blocks: list[Block]) -> _ProbedBlocks:
    calls: list[dict[str, list[_Seen]]] = [defaultdict(list) for _ in blocks]
    read: list[Tensor] = []
    written: list[Tensor] = []

    def receive(key: tuple[int, str], tensor: Tensor | None) -> None:
        index, name = key
        if tensor is not None:
            # All on one device: what enters the first block on another GPU comes from the one before.
            calls[index][name].append(_Seen(tensor.clone().to(loaded.device)))

    watched = [((i, name), site) for i, block in enumerate(blocks) for name, site in _parts(block).items()]
    with _leaves_outside(loaded, blocks, read, written), hooked(watched, receive), torch.inference_mode():
        output = loaded.probe(output_hidden_states=True)
    last = getattr(output, "last_hidden_state", None)
    last = first_tensor(output) if last is None else last
    states = getattr(output, "hidden_states", None)
    first = states[0] if states and len(states) == len(blocks) + 1 else None
    first = None if first is None else first.reshape(-1, first.shape[-1])
    returned = [last.reshape(-1, last.shape[-1])] if last is not None and last.ndim else []
    return _ProbedBlocks(calls, first, [*read, *returned], written)


def _parts(block: Block) -> dict[str, Site]:
    parts = dict(block.sites)
    for norm, inputs in block.inputs.items():
        parts |= {f"{norm}.inputs.{n}": site for n, site in enumerate(inputs)}
    parts |= {f"mlp_linears.{n}": site for n, site in enumerate(block.mlp_linears)}
    parts |= {f"later.{n}": site for n, site in enumerate(block.later)}
    parts |= {f"next_norms.{n}": site for n, site in enumerate(block.next_norms) if site}
    return parts | (block.mixed or {})


def _leaves_outside(
    loaded: Probed, blocks: list[Block], read: list[Tensor], written: list[Tensor]
) -> AbstractContextManager[None]:
    """Copy what the modules outside the blocks read and return."""
    inside = tuple(f"{block.path}." for block in blocks)

    def copy(value: Any, to: list[Tensor]) -> None:
        tensor = first_tensor(value)
        if tensor is not None and tensor.ndim:
            to.append(tensor.reshape(-1, tensor.shape[-1]).clone().to(loaded.device))

    leaves = [
        module
        for path, module in loaded.model.named_modules()
        if not path.startswith(inside) and not any(module.children())
    ]
    return hooks(
        before=[(module, lambda _, args, kwargs: copy((args, kwargs), read)) for module in leaves],
        after=[(module, lambda _, args, kwargs, output: copy(output, written)) for module in leaves],
    )


def _identities(loaded: Probed, blocks: list[Block], probe: _ProbedBlocks, index: int) -> Iterator[Identity]:
    block, tensors = blocks[index], probe.tensors(index)
    with torch.inference_mode():
        yield from _stream(blocks, probe, index)
        yield from _norms(block, tensors)
        yield from _projections(block, tensors)
        yield from _residual_sums(block, tensors)
        if _has(block, "mlp_act", "mlp_down", "mlp_out"):
            yield from _neurons(loaded, block, tensors)


def _has(block: Block, *sites: str) -> bool:
    return block.sites.keys() >= set(sites)


def _stream(blocks: list[Block], probe: _ProbedBlocks, index: int) -> Iterator[Identity]:
    """The stream goes from block to block as it is; where a round of blocks begins or ends, it is seen outside."""
    tensors = probe.tensors(index)
    if "resid_pre" in blocks[index].sites:
        pre = tensors["resid_pre"].flat
        before = probe.tensors(index - 1).get("resid_post") if index else None
        if before is not None and blocks[index].follows:
            yield Identity("resid_pre[i] == resid_post[i - 1]", ("resid_pre",), pre, before.flat)
        elif index == 0 and probe.first_hidden_state is not None:
            text = "resid_pre[0] is what the model writes before its first block"
            tried = [Identity(text, ("resid_pre",), pre, value) for value in probe.written]
            yield _best(
                [Identity("resid_pre[0] == hidden_states[0]", ("resid_pre",), pre, probe.first_hidden_state), *tried]
            )
    if "resid_post" in blocks[index].sites:
        post = tensors["resid_post"].flat
        after = probe.tensors(index + 1).get("resid_pre") if index + 1 < len(blocks) else None
        if after is not None and blocks[index + 1].follows:
            yield Identity("resid_post[i] == resid_pre[i + 1]", ("resid_post",), post, after.flat)
        else:
            text = "resid_post[-1] is what the model reads after its last block"
            yield _best([Identity(text, ("resid_post",), post, value) for value in probe.read])


def _norms(block: Block, tensors: Tensors) -> Iterator[Identity]:
    """A norm's output is what the norm makes of the stream, and what the sublayer after it reads."""
    for norm, source in (("attn_norm", "resid_pre"), ("mixer_norm", "resid_pre"), ("mlp_norm", _before_mlp(block))):
        if norm not in block.sites:
            continue
        normed, inputs = tensors[norm].flat, block.inputs[norm]
        if norm == "mlp_norm" and block.closing_norm is not None and "resid_mid" in block.sites:
            yield Identity("mlp_norm == resid_mid", (norm,), normed, tensors["resid_mid"].flat)
        elif source in block.sites:
            yield _again(f"{norm} == norm({source})", (norm,), normed, block.sites[norm], tensors[source])
        read = [tensors[f"{norm}.inputs.{n}"].flat for n in range(len(inputs))]
        names = [site.path.rpartition(".")[2] for site in inputs]
        readers = [name for name, value in zip(names, read, strict=True) if torch.equal(value, normed)]
        if not block.nested:
            yield Identity(f"{norm} is read by {', '.join(readers)}", (norm,), normed, read[0])


def _before_mlp(block: Block) -> str:
    return "resid_mid" if block.mixed != {} and not block.parallel else "resid_pre"


def _projections(block: Block, tensors: Tensors) -> Iterator[Identity]:
    """What attention or a mixer adds to the stream is what its last matrix writes, after a norm where there is one."""
    for norm, heads, out in (("attn_norm", "attn_heads", "attn_out"), ("mixer_norm", None, "mixer_out")):
        if out not in block.sites:
            continue
        last = len(block.inputs[norm]) - 1
        projection = block.inputs[norm][last]
        read = tensors[heads if heads in block.sites else f"{norm}.inputs.{last}"]  # type: ignore[index]
        sites = (heads, out) if heads in block.sites else (out,)
        chain = [projection] if block.sites[out].module is projection.module else [projection, block.sites[out]]
        text = (
            f"{out} == {'o_proj' if len(chain) == 1 else 'norm(o_proj'}({heads or 'its input'}){')' * (len(chain) - 1)}"
        )
        yield _again_after(text, sites, tensors[out].flat, chain, read)


def _residual_sums(block: Block, tensors: Tensors) -> Iterator[Identity]:
    """What the sublayers write adds up to the stream after them."""
    if not _has(block, "resid_pre", "resid_post") or block.mixed is None:
        return
    pre, post = tensors["resid_pre"].flat, tensors["resid_post"].flat
    mixed = {name: tensors[name].flat for name in block.mixed}
    sites = tuple(name for name in mixed if name in block.sites)
    mlp = tensors["mlp_out"].flat if "mlp_out" in block.sites else None
    if block.parallel or "resid_mid" not in block.sites:
        has_mlp = bool(block.inputs.get("mlp_norm"))
        if has_mlp and mlp is None:
            return
        terms = mixed | ({"mlp_out": mlp} if mlp is not None else {})
        yield from _sum(
            "resid_post", "resid_pre", post, pre, terms, (*sites, *(("mlp_out",) if mlp is not None else ())), ()
        )
        return
    mid = tensors["resid_mid"].flat
    if block.closing_norm is None:
        yield from _sum("resid_mid", "resid_pre", mid, pre, mixed, sites, ("resid_mid",))
        if mlp is not None:
            yield from _mlp_sum(block, tensors, mid, mlp, post)
        return
    if "mlp_norm" in block.sites:
        yield from _post_norm_sums(block, tensors, mixed)
    if mlp is not None:
        total = _Seen((mid + mlp).reshape(tensors["resid_post"].value.shape))
        closing = Site("", block.closing_norm, "out", 0)
        yield _again("resid_post == norm(resid_mid + mlp_out)", ("mlp_out",), post, closing, total)


def _post_norm_sums(block: Block, tensors: Tensors, mixed: dict[str, Tensor]) -> Iterator[Identity]:
    """Where the stream is normed after each sum: each norm makes of the sum what the next sublayer reads."""
    stream, name = tensors["resid_pre"], "resid_pre"
    norms = [*block.next_norms, block.sites["mlp_norm"]]
    for number, ((part, added), norm) in enumerate(zip(mixed.items(), norms, strict=False)):
        last = number == len(mixed) - 1
        read = tensors["resid_mid"] if last else tensors.get(f"next_norms.{number}")
        if norm is None or read is None:
            return
        sites = ((part,) if part in block.sites else ()) + (("resid_mid",) if last else ())
        total = _Seen((stream.flat + added).reshape(stream.value.shape))
        text = f"{'resid_mid' if last else 'the stream'} == norm({name} + {part})"
        yield _again(text, sites, read.flat, norm, total)
        stream, name = read, "the stream"


def _sum(
    name: str, before: str, found: Tensor, pre: Tensor, terms: dict[str, Tensor], sites: tuple[str, ...],
    stream: tuple[str, ...],
) -> Iterator[Identity]:  # fmt: skip
    """That `found` is the sum of `pre` and the terms, which proves their sites and the `stream`'s.

    The stream stands even where the block scales what it adds; then the terms do not.
    """
    if not terms:
        return
    values = list(terms.values())
    if any(value.shape != pre.shape for value in values):
        return
    text = " + ".join((before, *terms))
    bare = Identity(f"{name} == {text}", (*stream, *sites), found, sum(values, pre), (pre, *values))
    if bare.holds() or not stream:
        yield bare
        return
    scales = _scales(_exact(found) - _exact(pre), [_exact(value) for value in values])
    if any(abs(scale) < 1e-3 for scale in scales):
        yield bare
        return
    yield Identity(bare.text, sites, found, bare.expected, bare.terms)
    scaled = [value * scale for value, scale in zip(values, scales, strict=True)]
    letters = " + ".join(f"{'cdefg'[n]} * {term}" for n, term in enumerate(terms))
    yield Identity(f"{name} == {before} + {letters}", stream, found, sum(scaled, pre), (pre, *scaled))


def _scales(change: Tensor, terms: list[Tensor]) -> list[float]:
    """The factors with which the terms add up to `change`, by least squares."""
    columns = torch.stack([term.flatten() for term in terms], dim=1)
    solution = torch.linalg.lstsq(columns.T @ columns, columns.T @ change.flatten()[:, None]).solution
    return [float(value) for value in solution.flatten()]


def _mlp_sum(block: Block, tensors: Tensors, mid: Tensor, mlp: Tensor, post: Tensor) -> Iterator[Identity]:
    """The MLP's output leads to the block's, or to what something that runs after it in the block reads."""
    total = mid + mlp
    bare = Identity("resid_post == resid_mid + mlp_out", ("mlp_out",), post, total, (mid, mlp))
    later = [tensors[f"later.{n}"].flat for n in range(len(block.later)) if f"later.{n}" in tensors]
    text = "resid_mid + mlp_out is read by a later part of the block"
    yield _best([bare, *(Identity(text, ("mlp_out",), value, total, (mid, mlp)) for value in later)])


def _neurons(loaded: Probed, block: Block, tensors: Tensors) -> Iterator[Identity]:
    yield from _activation(loaded, block, tensors)
    down, out = block.sites["mlp_down"], block.sites["mlp_out"]
    written = tensors["mlp_down"].flat
    yield _again(
        "mlp_down == down(mlp_act)", ("mlp_act", "mlp_down"), written, block.sites["mlp_act"], tensors["mlp_act"]
    )
    if out.module is down.module:
        yield Identity("mlp_out == mlp_down", ("mlp_down", "mlp_out"), tensors["mlp_out"].flat, written)
    else:
        text = "mlp_out == norm(mlp_down)"
        yield _again(text, ("mlp_down", "mlp_out"), tensors["mlp_out"].flat, out, tensors["mlp_down"])


def _activation(loaded: Probed, block: Block, tensors: Tensors) -> Iterator[Identity]:
    function = activation_of(loaded.config, block.activation)
    if "mlp_pre" not in block.sites or function is None:
        return
    flat = {name: seen.flat for name, seen in tensors.items()}
    neurons, pre = flat["mlp_act"], flat["mlp_pre"]
    activated = function(pre)
    sites = ("mlp_pre",)
    tried = [Identity("mlp_act == act(mlp_pre)", sites, neurons, activated)]
    for up in possible_ups(len(block.mlp_linears), flat, activated.shape[-1]):
        tried.append(Identity("mlp_act == act(mlp_pre) * up", sites, neurons, activated * up))
    yield _best(tried)


def _best(identities: list[Identity]) -> Identity:
    return min(identities, key=lambda identity: identity.worst()[0])


def _again(text: str, sites: tuple[str, ...], found: Tensor, site: Site, value: _Seen) -> Identity:
    """That the site's module makes `found` of a value."""
    return _again_after(text, sites, found, [site], value)


def _again_after(text: str, sites: tuple[str, ...], found: Tensor, chain: list[Site], value: _Seen) -> Identity:
    """That the modules make `found` of a value, one after the other; if one cannot be run alone, nothing is proven."""
    made: Any = value.value
    try:
        for site in chain:
            made = first_tensor(site.module(made))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        made = None
    expected = torch.empty(0, 0) if made is None else made.reshape(-1, made.shape[-1])
    return Identity(text, sites, found, expected)


def _exact(value: Tensor) -> Tensor:
    return value.cpu().double()  # not every device has float64


def _row_rms(value: Tensor) -> Tensor:
    return value.square().mean(dim=-1, keepdim=True).sqrt()
