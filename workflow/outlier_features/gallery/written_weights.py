"""What neurons write: the columns of each block's or expert's last matrix."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from outlier_features.experts.moe_layers import MoeLayer
from outlier_features.model.models import LoadedModel
from outlier_features.model.on_demand import require_weights
from outlier_features.model.sites import Block, Site
from outlier_features.origin.mlp_weights import weight_of

Array = np.ndarray[Any, Any]


class Bank(NamedTuple):
    """The neurons of a block's dense MLP or, of a mixture of experts, of one routed expert or the shared one (None)."""

    layer: int
    expert: int | None


def dense_neurons(blocks: list[Block], experts: Mapping[int, MoeLayer], layer: int) -> Site | None:
    """What the down projection reads of a block's dense MLP, or of the shared expert of one with experts."""
    return experts[layer].shared_act if layer in experts else blocks[layer].sites.get("mlp_act")


class WrittenWeights:
    """W_down of a model's banks.

    blocks    with the sites that are proven
    experts   by layer, the blocks whose experts are known
    """

    def __init__(self, loaded: LoadedModel, blocks: list[Block], experts: Mapping[int, MoeLayer]):
        self._width = loaded.d_model
        self._blocks, self._experts = blocks, experts

    def columns(self, bank: Bank, neurons: Array) -> Array | None:
        """From each of the neurons to each dim, float64 (H, n); None where they do not write through a matrix to the
        dims of the residual stream."""
        matrix = self._matrix(bank)
        if matrix is None or matrix.ndim != 2 or matrix.shape[0] != self._width:
            return None
        found: Array = matrix[:, torch.from_numpy(neurons.astype(np.int64)).to(matrix.device)].double().cpu().numpy()
        return found

    def _matrix(self, bank: Bank) -> torch.Tensor | None:
        if bank.expert is None:
            site = dense_neurons(self._blocks, self._experts, bank.layer)
            return None if site is None or not hasattr(site.module, "weight") else weight_of(site.module)
        if bank.layer not in self._experts:
            return None
        experts: Any = self._experts[bank.layer].experts
        if experts.has_post_expert_norm:
            return None
        require_weights(experts)
        matrix: torch.Tensor = experts.down_proj[bank.expert].detach()
        return matrix.T if experts.is_transposed else matrix
