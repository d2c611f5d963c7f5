"""Logits of the tokens that come next, and how the stream behind the last block reads in them."""

from dataclasses import dataclass
from typing import Any

import torch

from outlier_features.errors import InputError
from outlier_features.gallery.norm_scaling import Norm
from outlier_features.gallery.unembedding import Unembedding
from outlier_features.model.models import LoadedModel
from outlier_features.model.on_demand import require_weights

Tensor = torch.Tensor
_LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True)
class Predicted:
    """Of n positions, in float64 on the CPU.

    readers   (n, H): times the stream behind the last block they are the centred logit, but for `constant` (n,)
    logits    (n,), the centred logits as the model's own head gives them
    size      (n,), abs of the logits that are not centred: what they are rounded by goes with it
    """

    readers: Tensor
    constant: Tensor
    logits: Tensor
    size: Tensor


class LogitDirections:
    """The centred logit of a token is its logit less the mean over the vocabulary, before soft-capping: what is the
    same for all tokens changes no probability.

    Raises `InputError` on construction, with the reason, where logits are not linear in the stream but for one norm.
    """

    def __init__(self, loaded: LoadedModel, unembedding: Unembedding):
        self._unembedding = unembedding
        self._norm = Norm.of(unembedding.norm) if unembedding.norm else None
        if unembedding.norm and self._norm is None:
            raise InputError("it is not known what the norm before its unembedding does")
        self._factor = unembedding.logit_factor(getattr(loaded.config, "final_logit_softcapping", None))
        weight, bias = unembedding.weight, unembedding.bias
        self._at_once = max(1, _LOGITS_AT_ONCE // len(weight))
        rows = max(1, _LOGITS_AT_ONCE // weight.shape[1])
        self._mean = sum(_exact(some).sum(0) for some in weight.split(rows)) / len(weight)
        self._mean_bias = 0.0 if bias is None else float(_exact(bias).mean())

    def of(self, stream: Tensor, targets: Tensor) -> Predicted:
        """From the stream behind the last block (n, H) where ids int64 (n,) come next."""
        end, targets = self._unembedding, targets.to(stream.device)
        weight, bias = end.weight, end.bias
        at = targets.to(weight.device)
        rows = (_exact(weight[at]) - self._mean) * self._factor
        constant = torch.zeros(len(rows), dtype=torch.float64)
        if bias is not None:
            constant += (_exact(bias[at]) - self._mean_bias) * self._factor
        readers, states = rows * end.factor, stream
        if self._norm is not None and end.norm is not None:
            module: Any = end.norm.module
            if self._norm.scaling.bias is not None:
                constant += readers @ self._norm.scaling.bias
            readers = self._norm.scaling.before(readers) * self._norm.factor(stream)
            require_weights(module)
            states = module(stream[None])[0]
        if end.factor != 1:
            states = states * end.factor
        logits, size = self._logits(states, targets)
        return Predicted(readers, constant, logits, size)

    def _logits(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The centred logits of the targets, and their abs before they are centred, by the model's own head."""
        chosen, means = [], []
        for some, ids in zip(states.split(self._at_once), targets.split(self._at_once), strict=True):
            made = self._unembedding.head(some[None])[0]
            chosen.append(_exact(made.gather(1, ids.to(made.device)[:, None])[:, 0]))
            means.append(_exact(made.float().mean(1) if made.device.type == "mps" else made.double().mean(1)))
        found, mean = torch.cat(chosen) * self._factor, torch.cat(means) * self._factor
        return found - mean, found.abs() + mean.abs()


def _exact(value: Tensor) -> Tensor:
    return value.cpu().double()
