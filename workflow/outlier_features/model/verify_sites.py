"""Proof, on the model at hand, that each site is the tensor that its name says: identities between a block's tensors.

A wrong number is worse than a crash. The identities are computed by the model's own modules, in its own dtype, on a few
probe tokens, and every value must agree: to the rounding of an addition where the stream adds up, to that of a matrix
product elsewhere.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from outlier_features.errors import InputError
from outlier_features.model.activation import activation_of, possible_ups
from outlier_features.model.models import LoadedModel, probe_ids
from outlier_features.model.sites import Block, Site, hooked

Tensor = torch.Tensor
Tensors = dict[str, Tensor]  # by site, or by part of a block: (B*T, H)

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


def verify_sites(loaded: LoadedModel, blocks: list[Block], requested: list[str]) -> dict[str, list[str]]:
    """Check the identities of every site on the probe; returns, for each site, those that held and in how many blocks.

    Raises `InputError` where an identity that concerns a `requested` site fails or the site has none, and where its
    module does not run once a pass or its tensor is not of the model's dtype.
    """
    probe = _run_probe(loaded, blocks)
    for index, block in enumerate(blocks):
        for site in set(requested) & set(block.sites):
            _require_one(probe.calls[index][site], loaded.dtype, f"{site} of block {index} ({block.sites[site].path})")
    held: dict[str, Counter[str]] = defaultdict(Counter)
    for index, block in enumerate(blocks):
        proven = set()
        for identity in _identities(loaded, blocks, probe, index):
            if identity.holds():
                proven |= set(identity.sites)
                for site in identity.sites:
                    held[site][identity.text] += 1
            elif doubtful := [site for site in identity.sites if site in requested]:
                raise InputError(_failure(doubtful[0], index, block, identity), f"leave {doubtful[0]} out")
        for site in requested:
            if site in block.sites and site not in proven:
                raise InputError(
                    f"sites: found no identity that proves {site} of block {index}, expected one", f"leave {site} out"
                )
    return {
        site: [f"{text} ({n} of {len(blocks)} blocks)" for text, n in texts.items()] for site, texts in held.items()
    }


def _failure(site: str, index: int, block: Block, identity: Identity) -> str:
    multiple, difference = identity.worst()
    return (
        f"sites: {site} of block {index} was found at {block.sites[site].path} ({block.sites[site].side}), but "
        f"{identity.text} fails by {difference:.3g}, {multiple:.3g} times what rounding allows"
    )


def _require_one(calls: list[Tensor], dtype: torch.dtype, name: str) -> None:
    if len(calls) != 1:
        raise InputError(f"sites: the module of {name} ran {len(calls)} times in a pass, expected once")
    if calls[0].dtype != dtype:
        raise InputError(
            f"sites: {name} is {calls[0].dtype} in a model of {dtype}, set `dtype: float32` for this model"
        )


@dataclass(frozen=True)
class _Probe:
    """The tensors of a pass: by block and site (or part of a block) those of each call, and what the rest made of them.

    first_hidden_state   what transformers reports as the first block's input, if it does
    after_blocks         what the modules outside the blocks read, and the last hidden state
    """

    calls: list[dict[str, list[Tensor]]]
    first_hidden_state: Tensor | None
    after_blocks: list[Tensor]

    def tensors(self, index: int) -> Tensors:
        return {name: calls[-1] for name, calls in self.calls[index].items()}


def _run_probe(loaded: LoadedModel, blocks: list[Block]) -> _Probe:
    calls: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in blocks]
    after_blocks: list[Tensor] = []

    def receive(key: tuple[int, str], tensor: Tensor | None) -> None:
        index, name = key
        if tensor is not None:
            rows = tensor.reshape(-1, tensor.shape[-1]).clone()
            after_blocks.append(rows) if index == len(blocks) else calls[index][name].append(rows)

    watched = [((i, name), site) for i, block in enumerate(blocks) for name, site in _parts(block).items()]
    watched += [((len(blocks), site.path), site) for site in _leaves_outside(loaded, blocks)]
    with hooked(watched, receive), torch.inference_mode():
        output = loaded.base(probe_ids(loaded.model), output_hidden_states=True)
    last = output.last_hidden_state
    states = getattr(output, "hidden_states", None)
    first = states[0].flatten(0, 1) if states and len(states) == len(blocks) + 1 else None
    return _Probe(calls, first, [*after_blocks, last.reshape(-1, last.shape[-1])])


def _parts(block: Block) -> dict[str, Site]:
    parts = dict(block.sites)
    parts |= {f"attn_inputs.{n}": site for n, site in enumerate(block.attn_inputs)}
    parts |= {f"mlp_linears.{n}": site for n, site in enumerate(block.mlp_linears)}
    return parts | ({"mlp_input": block.mlp_input} if block.mlp_input else {})


def _leaves_outside(loaded: LoadedModel, blocks: list[Block]) -> Iterator[Site]:
    inside = tuple(f"{block.path}." for block in blocks)
    for path, module in loaded.model.named_modules():
        if not path.startswith(inside) and not any(module.children()):
            yield Site(path, module, "in", 0)


def _identities(loaded: LoadedModel, blocks: list[Block], probe: _Probe, index: int) -> Iterator[Identity]:
    block, tensors = blocks[index], probe.tensors(index)
    if not _has(block, "resid_pre", "resid_post"):
        return
    with torch.inference_mode():
        yield from _stream(probe, index, tensors)
        yield from _attention(block, tensors)
        if _has(block, "attn_out", "mlp_out"):
            yield from _residual_sums(block, tensors)
        if "mlp_norm" in block.sites:
            yield from _mlp_norm(block, tensors)
        if _has(block, "mlp_act", "mlp_down", "mlp_out"):
            yield from _neurons(loaded, block, tensors)


def _has(block: Block, *sites: str) -> bool:
    return block.sites.keys() >= set(sites)


def _stream(probe: _Probe, index: int, tensors: Tensors) -> Iterator[Identity]:
    """The stream goes from block to block as it is."""
    pre, post = tensors["resid_pre"], tensors["resid_post"]
    if index > 0:
        before = probe.tensors(index - 1)["resid_post"]
        yield Identity("resid_pre[i] == resid_post[i - 1]", ("resid_pre",), pre, before)
    elif probe.first_hidden_state is not None:
        yield Identity("resid_pre[0] == hidden_states[0]", ("resid_pre",), pre, probe.first_hidden_state)
    if index + 1 < len(probe.calls):
        after = probe.tensors(index + 1)["resid_pre"]
        yield Identity("resid_post[i] == resid_pre[i + 1]", ("resid_post",), post, after)
    else:
        text = "resid_post[-1] is what the model reads after its last block"
        yield _best([Identity(text, ("resid_post",), post, value) for value in probe.after_blocks])


def _attention(block: Block, tensors: Tensors) -> Iterator[Identity]:
    if "attn_norm" in block.sites:
        normed = tensors["attn_norm"]
        again = _call(block.sites["attn_norm"], tensors["resid_pre"])
        yield Identity("attn_norm == norm(resid_pre)", ("attn_norm", "resid_pre"), normed, again)
        names = [site.path.rpartition(".")[2] for site in block.attn_inputs]
        inputs = [tensors[f"attn_inputs.{n}"] for n in range(len(names))]
        readers = [name for name, read in zip(names, inputs, strict=True) if torch.equal(read, normed)]
        yield Identity(f"attn_norm is read by {', '.join(readers)}", ("attn_norm",), normed, inputs[0])
    if _has(block, "attn_heads", "attn_out"):
        heads, out = block.sites["attn_heads"], block.sites["attn_out"]
        projected = _call(heads, tensors["attn_heads"])
        text = "attn_out == o_proj(attn_heads)"
        if out.module is not heads.module:
            projected, text = _call(out, projected), "attn_out == norm(o_proj(attn_heads))"
        yield Identity(text, ("attn_heads", "attn_out"), tensors["attn_out"], projected)


def _residual_sums(block: Block, tensors: Tensors) -> Iterator[Identity]:
    pre, post, attn, mlp = (tensors[name] for name in ("resid_pre", "resid_post", "attn_out", "mlp_out"))
    if block.parallel:
        text = "resid_post == resid_pre + attn_out + mlp_out"
        yield Identity(text, ("attn_out", "mlp_out"), post, pre + attn + mlp, (pre, attn, mlp))
        return
    if "resid_mid" not in block.sites:
        return
    mid = tensors["resid_mid"]
    if block.closing_norm is None:
        yield from _sum_before_mlp(pre, attn, mid)
        yield Identity("resid_post == resid_mid + mlp_out", ("mlp_out",), post, mid + mlp, (mid, mlp))
        return
    again = _call(block.sites["mlp_norm"], pre + attn)
    yield Identity("resid_mid == norm(resid_pre + attn_out)", ("resid_mid", "attn_out", "mlp_norm"), mid, again)
    again = block.closing_norm(mid + mlp)
    yield Identity("resid_post == norm(resid_mid + mlp_out)", ("resid_post", "mlp_out"), post, again)


def _sum_before_mlp(pre: Tensor, attn: Tensor, mid: Tensor) -> Iterator[Identity]:
    """`resid_mid` stands even where the block scales attention's output before it adds it; `attn_out` does not."""
    bare = Identity("resid_mid == resid_pre + attn_out", ("resid_mid", "attn_out"), mid, pre + attn, (pre, attn))
    change, said = _exact(mid) - _exact(pre), _exact(attn)
    scale = float((change * said).sum() / said.square().sum())
    if bare.holds() or abs(scale) < 1e-3:
        yield bare
        return
    yield replace(bare, sites=("attn_out",))
    scaled = attn * scale
    yield Identity("resid_mid == resid_pre + c * attn_out", ("resid_mid",), mid, pre + scaled, (pre, scaled))


def _mlp_norm(block: Block, tensors: Tensors) -> Iterator[Identity]:
    normed = tensors["mlp_norm"]
    source = "resid_pre" if block.parallel else "resid_mid"
    if block.closing_norm is not None:
        yield Identity("mlp_norm == resid_mid", ("mlp_norm", "resid_mid"), normed, tensors["resid_mid"])
    elif source in block.sites:
        again = _call(block.sites["mlp_norm"], tensors[source])
        yield Identity(f"mlp_norm == norm({source})", ("mlp_norm", source), normed, again)
    yield Identity("mlp_norm is read by the MLP", ("mlp_norm",), normed, tensors["mlp_input"])


def _neurons(loaded: LoadedModel, block: Block, tensors: Tensors) -> Iterator[Identity]:
    yield from _activation(loaded, block, tensors)
    down, out = block.sites["mlp_down"], block.sites["mlp_out"]
    written = _call(block.sites["mlp_act"], tensors["mlp_act"])
    yield Identity("mlp_down == down(mlp_act)", ("mlp_act", "mlp_down"), tensors["mlp_down"], written)
    if out.module is down.module:
        yield Identity("mlp_out == mlp_down", ("mlp_down", "mlp_out"), tensors["mlp_out"], tensors["mlp_down"])
    else:
        again = _call(out, tensors["mlp_down"])
        yield Identity("mlp_out == norm(mlp_down)", ("mlp_down", "mlp_out"), tensors["mlp_out"], again)


def _activation(loaded: LoadedModel, block: Block, tensors: Tensors) -> Iterator[Identity]:
    function = activation_of(block, loaded.config)
    if "mlp_pre" not in block.sites or function is None:
        return
    neurons, pre = tensors["mlp_act"], tensors["mlp_pre"]
    activated = function(pre)
    sites = ("mlp_pre", "mlp_act")
    tried = [Identity("mlp_act == act(mlp_pre)", sites, neurons, activated)]
    for up in possible_ups(block, tensors, activated.shape[-1]):
        tried.append(Identity("mlp_act == act(mlp_pre) * up", sites, neurons, activated * up))
    yield _best(tried)


def _best(identities: list[Identity]) -> Identity:
    return min(identities, key=lambda identity: identity.worst()[0])


def _call(site: Site, value: Tensor) -> Tensor:
    output: Tensor = site.module(value)
    return output


def _exact(value: Tensor) -> Tensor:
    return value.cpu().double()  # not every device has float64


def _row_rms(value: Tensor) -> Tensor:
    return value.square().mean(dim=-1, keepdim=True).sqrt()
