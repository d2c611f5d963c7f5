"""What a model's blocks add to the residual stream, split into heads and neurons as far as these can be told apart."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from outlier_features.errors import InputError
from outlier_features.gallery.norm_scaling import Norm
from outlier_features.model.heads import find_heads
from outlier_features.model.models import LoadedModel, probe_ids
from outlier_features.model.sites import Block, Site, hooked
from outlier_features.model.verify_sites import TOLERANCE, prove_sites
from outlier_features.norms.norm_forms import NormCall
from outlier_features.origin.block_parts import OUTPUTS, exact, scales_of
from outlier_features.origin.mlp_weights import weight_of

Tensor = torch.Tensor
STREAM = ("resid_pre", "resid_mid", "resid_post")
# What the last matrix of a sublayer reads, and what its parts are called.
_READ = {"attn_out": ("attn_heads", "head"), "mlp_out": ("mlp_act", "neuron")}
_NAMES = {"attn_out": "attention", "mixer_out": "mixer", "mlp_out": "mlp"}


@dataclass(frozen=True)
class Matrix:
    """The last matrix of a sublayer, which reads its heads or neurons side by side.

    part    `head` or `neuron`, `count` of them
    read    the matrix's input, `written` its output
    norm    what makes of `written` the sublayer's output, if something does
    """

    part: str
    count: int
    read: Site
    written: Site
    norm: Norm | None


@dataclass(frozen=True)
class Sublayer:
    """What a sublayer adds to the stream: `scale` times its output at site `out`.

    name     `attention`, `mixer`, `mlp` or `cross_attention`
    matrix   its heads or neurons; None where they are one part
    """

    layer: int
    name: str
    out: Site
    scale: float
    matrix: Matrix | None


def sublayers_of(
    loaded: LoadedModel, blocks: list[Block], calls: Mapping[nn.Module, NormCall]
) -> tuple[list[Sublayer], list[str]]:
    """The sublayers of all blocks, and why the heads or neurons of some are one part.

    blocks   of `find_sites`
    calls    of `norm_calls`, by module

    Raises `InputError` where what the blocks add to the stream is not the sum of what their sublayers write.
    """
    for layer, block in enumerate(blocks):
        lacking = [site for site in ("resid_pre", "resid_post") if site not in block.sites]
        if lacking:
            raise InputError(f"{lacking[0]} of block {layer} is absent: {block.absent[lacking[0]]}")
        if block.closing_norm is not None:
            raise InputError(f"block {layer} norms the stream itself, so what was written before is no longer a part")
    doubtful = prove_sites(loaded, blocks).doubtful
    heads, no_heads = find_heads(loaded, blocks)
    scales = _proven_scales(loaded, blocks)
    found, reasons = [], []
    for layer, block in enumerate(blocks):
        for site, out in _outputs(block).items():
            matrix: Matrix | str | None = None
            if site in _READ:
                matrix = _matrix(loaded, block, site, heads.get(layer), no_heads.get(layer, ""), calls)
                if isinstance(matrix, Matrix) and (layer, _READ[site][0]) in doubtful:
                    matrix = doubtful[layer, _READ[site][0]]
            if isinstance(matrix, str):
                reasons.append(f"block {layer}: {matrix}")
            name = _NAMES.get(site, "cross_attention")
            found.append(
                Sublayer(layer, name, out, scales[layer][site], matrix if isinstance(matrix, Matrix) else None)
            )
    return found, reasons


def _outputs(block: Block) -> dict[str, Site]:
    """By name what the block's sublayers add to the stream."""
    outputs = {name: block.sites[name] for name in OUTPUTS if name in block.sites}
    return outputs | {name: site for name, site in (block.mixed or {}).items() if name not in outputs}


def _matrix(
    loaded: LoadedModel,
    block: Block,
    site: str,
    heads: int | None,
    no_heads: str,
    calls: Mapping[nn.Module, NormCall],
) -> Matrix | str:
    """Of a sublayer, by the site of its output; or why there is none."""
    out, (read_site, part) = block.sites[site], _READ[site]
    read = block.sites.get(read_site)
    if read is None:
        return block.absent[read_site]
    count = read.width if part == "neuron" else heads
    if count is None:
        return no_heads
    if getattr(read.module, "weight", None) is None or weight_of(read.module).shape != (loaded.d_model, read.width):
        return f"{read.path} is no matrix of {loaded.d_model} x {read.width}"
    written = Site(read.path, read.module, "out", out.width, read.call, read.calls, read.time_major)
    norm = None
    if out.module is not read.module:
        norm = Norm.of(calls.get(out.module))
        if norm is None:
            return f"it is not known what {out.path} does"
    return Matrix(part, count, read, written, norm)


@torch.inference_mode()
def _proven_scales(loaded: LoadedModel, blocks: list[Block]) -> list[dict[str, float]]:
    """By block, the number that each output is multiplied by before it is added; raises `InputError`."""
    found: list[dict[str, float]] = [{} for _ in blocks]
    rows: dict[str, Tensor] = {}
    before: list[Tensor] = []

    def receive(key: tuple[int, str], value: Tensor) -> None:
        layer, name = key
        rows[name] = exact(value.reshape(-1, value.shape[-1]))
        if name == "resid_post":
            found[layer] = _scales(layer, blocks[layer], rows, before, loaded.dtype)
            before[:] = [rows[name]]
            rows.clear()

    with hooked(_probed(blocks), receive):
        loaded.base(probe_ids(loaded.model))
    return found


def _probed(blocks: list[Block]) -> Iterator[tuple[tuple[int, str], Site]]:
    for layer, block in enumerate(blocks):
        outputs = _outputs(block)
        yield from (((layer, name), block.sites[name]) for name in STREAM[:-1] if name in block.sites)
        yield from (((layer, name), site) for name, site in outputs.items())
        yield (layer, "resid_post"), block.sites["resid_post"]


def _scales(
    layer: int, block: Block, rows: Mapping[str, Tensor], before: list[Tensor], dtype: torch.dtype
) -> dict[str, float]:
    if rows.keys() < {"resid_pre", "resid_post", *_outputs(block)}:
        raise InputError(f"block {layer} did not run all of its parts on the probe")
    if before and not torch.equal(before[0], rows["resid_pre"]):
        raise InputError(f"the model changes the stream between blocks {layer - 1} and {layer}")
    scales = dict.fromkeys(_outputs(block), 1.0)
    terms = [rows["resid_pre"], *(rows[name] for name in scales)]
    if not _sums(terms, rows["resid_post"], 2 * torch.finfo(dtype).eps):
        scales |= scales_of({name: row.to(dtype) for name, row in rows.items()})
        terms = [rows["resid_pre"], *(scale * rows[name] for name, scale in scales.items())]
        if not _sums(terms, rows["resid_post"], TOLERANCE[dtype]):
            names = ", ".join(scales) or "nothing"
            raise InputError(f"what was found in block {layer} ({names}) does not sum to what it adds to the stream")
    return scales


def _sums(terms: list[Tensor], whole: Tensor, relative: float) -> bool:
    size = torch.stack([term.abs() for term in terms]).sum(0)
    return bool(((torch.stack(terms).sum(0) - whole).abs() <= relative * size).all())
