"""Which tokens' logits a neuron raises and lowers by what it writes, through the final norm and the unembedding.

The norm divides by a number that depends on the whole stream, which is left out, as is what is done to logits after the
unembedding (a factor, soft-capping): neither changes which of a direction's effects is larger.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from outlier_features.errors import InputError
from outlier_features.experts.moe_layers import MoeLayer
from outlier_features.gallery.norm_scaling import Scaling, scaling_of
from outlier_features.gallery.unembedding import Unembedding
from outlier_features.model.models import LoadedModel
from outlier_features.model.sites import Block
from outlier_features.norms.norm_forms import norm_calls

Array = np.ndarray[Any, Any]
Tensor = torch.Tensor
TOKENS = 10
_LOGITS_AT_ONCE = 2**24


class LogitEffects:
    """The way from what a block's neurons write to the logits.

    Raises `InputError` on construction, with the reason, where there is none that is a norm and a matrix.
    """

    def __init__(self, loaded: LoadedModel, blocks: list[Block], experts: Mapping[int, MoeLayer]):
        self._blocks, self._experts = blocks, experts
        self._calls = {call.module: call for call in norm_calls(loaded).values()}
        self._scalings: dict[Any, Scaling | None] = {}
        found = Unembedding.of(loaded, self._calls)
        self._unembedding = found.weight
        self._end = Scaling(False, torch.full((loaded.d_model,), found.factor, dtype=torch.float64))
        if found.norm is not None:
            scaling = self._scaling(found.norm.module)
            if scaling is None:
                raise InputError("it is not known what the norm before its unembedding does")
            self._end = Scaling(scaling.centres, scaling.gain * found.factor)

    def directions(self, layer: int, written: Array) -> Tensor | None:
        """What the unembedding reads of columns of W_down, float64 (H, n), as (n, H); None where norms stand between
        the block and the end, or it is not known what one does.
        """
        if any(block.closing_norm is not None for block in self._blocks[layer:]):
            return None
        found = torch.from_numpy(written.T.copy())
        if layer in self._experts:
            out, down = self._experts[layer].mlp_out, self._experts[layer].whole
        else:
            sites = self._blocks[layer].sites
            if not sites.keys() >= {"mlp_down", "mlp_out"}:
                return None
            out, down = sites["mlp_out"], sites["mlp_down"]
        if out.module is not down.module:
            behind = self._scaling(out.module)
            if behind is None:
                return None
            found = behind.of(found)
        return self._end.of(found)

    def largest(self, directions: Tensor) -> tuple[list[dict[str, list[Any]]], ...]:
        """For each of the directions (n, H): `tokens` and `logits` of the ten that it raises most, and of those that it
        lowers most, the strongest first."""
        top: list[dict[str, list[Any]]] = []
        bottom: list[dict[str, list[Any]]] = []
        unembedding = self._unembedding.to("cpu", torch.float32)
        at_once = max(1, _LOGITS_AT_ONCE // len(self._unembedding))
        for some in directions.split(at_once):
            logits = some.to("cpu", torch.float32) @ unembedding.T
            for found, sign in ((top, 1), (bottom, -1)):
                near = (sign * logits).topk(min(2 * TOKENS, logits.shape[1]), dim=1).indices.sort(dim=1).values
                # The last bits of the product depend on the number of threads; those of this, once rounded, do not.
                exact = (some.cpu().double()[:, None] * unembedding[near].double()).sum(dim=2).float()
                order = (sign * exact).argsort(dim=1, descending=True, stable=True)[:, :TOKENS]
                tokens, values = near.gather(1, order), exact.gather(1, order)
                found += [
                    {"tokens": one.tolist(), "logits": value.tolist()}
                    for one, value in zip(tokens, values, strict=True)
                ]
        return top, bottom

    def _scaling(self, module: Any) -> Scaling | None:
        if module not in self._scalings:
            call = self._calls.get(module)
            self._scalings[module] = None if call is None else scaling_of(call)
        return self._scalings[module]
