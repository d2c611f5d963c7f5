"""What of an MLP with experts the routed ones write into the residual stream, and what the shared one does."""

from collections.abc import Mapping

import torch

from outlier_features.experts.moe_layers import MoeLayer, find_moe_layers
from outlier_features.model.models import LoadedModel
from outlier_features.model.sites import Block, Site
from outlier_features.model.verify_sites import TOLERANCE
from outlier_features.origin.block_parts import Part
from outlier_features.origin.shares_of_parts import ROUTED, SHARED

Tensor = torch.Tensor
_GATE = "shared_gate"


def expert_sites(loaded: LoadedModel, blocks: list[Block]) -> tuple[dict[int, dict[str, Site]], str | None]:
    """By block with experts, the sites that `split_mlp` reads; or why they are not known.

    They are proven on a probe (`find_moe_layers`).
    """
    found = find_moe_layers(loaded, blocks)
    if found.absent and any(block.routed for block in blocks):
        return {}, found.absent
    return {layer.layer: _sites(layer) for layer in found.layers}, None


def _sites(layer: MoeLayer) -> dict[str, Site]:
    """The routed experts' sum is what their module returns; a norm that follows would mix it with the shared one's."""
    routed = Site(layer.whole.path, layer.experts, "out", layer.whole.width)
    if layer.shared is None:
        return {ROUTED: routed}
    if layer.mlp_out.module is not layer.whole.module:
        return {}
    return {ROUTED: routed, SHARED: layer.shared, **({_GATE: layer.gate} if layer.gate else {})}


def split_mlp(part: Part, rows: Mapping[str, Tensor]) -> list[Part]:
    """A part `mlp_out` of a block as `routed_out` and `shared_out`, which sum to it; as it is where they do not.

    part   may be a multiple of what the MLP returns (Granite)
    rows   `mlp_out` and the sites of `expert_sites` at the token, (H,) each; none of a dense MLP
    """
    if ROUTED not in rows:
        return [part]
    if SHARED not in rows:
        return [Part(ROUTED, part.value)]
    routed, shared, whole = (rows[name].cpu().double() for name in (ROUTED, SHARED, "mlp_out"))
    if _GATE in rows:
        shared = shared * rows[_GATE].cpu().double().sigmoid()
    size = routed.abs() + shared.abs() + whole.abs()
    if bool(((routed + shared - whole).abs() > TOLERANCE[rows["mlp_out"].dtype] * size).any()):
        return [part]
    largest = int(whole.abs().argmax())
    scale = float(part.value[largest] / whole[largest]) if float(whole[largest]) else 1.0
    return [Part(ROUTED, scale * routed), Part(SHARED, scale * shared)]
