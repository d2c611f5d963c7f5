"""How far the next-token predictions of a changed model are from those of the unchanged one.

Logits of a whole batch are large: of the unchanged model its last hidden states are kept instead, from which logits are
made again some tokens at a time, and so many log-probabilities as fit a bound.
"""

from collections.abc import Iterator
from typing import Any

import torch

from outlier_features.extract.losses import LossRecorder, scores_of

Tensor = torch.Tensor
_KEPT_BYTES = 2**28


class Divergence:
    """KL(unchanged || changed) of each next-token prediction, in nats, beside the losses.

    recorder   whose last pass is looked at
    """

    def __init__(self, recorder: LossRecorder):
        self._recorder = recorder
        self._unchanged: Any = None
        self._kept: list[Tensor] = []  # the first blocks' log-probabilities

    def keep(self) -> None:
        """The last pass was of the unchanged model; those to come over the same ids are compared with it."""
        self._unchanged, self._kept = self._recorder.last, []

    @torch.inference_mode()
    def scores(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Of the last pass, over ids int64 (B, T) with their mask: `nll`, `top1_probability` and `kl`, float32 (B, T).

        Each at the token that is predicted, as in `LossRecorder.token_losses`.
        """
        names = ("nll", "top1_probability", "kl")
        found = {name: torch.zeros(ids.shape, dtype=torch.float32, device=ids.device) for name in names}
        blocks = zip(self._recorder.logits(ids, self._recorder.last), self._reference(ids), strict=True)
        for (there, logits), reference in blocks:
            found["nll"][there], found["top1_probability"][there] = scores_of(logits, ids[there])
            found["kl"][there] = divergence(reference, logits)
        return {name: value * mask for name, value in found.items()}

    def _reference(self, ids: Tensor) -> Iterator[Tensor]:
        """The unchanged model's log-probabilities, block by block: the first ones as they were kept."""
        yield from self._kept
        held = sum(one.nbytes for one in self._kept)
        for _, logits in self._recorder.logits(ids, self._unchanged, skip=len(self._kept)):
            found = logits.float().log_softmax(-1)
            held += found.nbytes
            if held <= _KEPT_BYTES:
                self._kept.append(found)
            yield found


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """`sum_v p_v (log p_v - log q_v)` (n,), of the log-probabilities `reference` (n, V), and q of `logits` (n, V).

    Added up as `p (e^d - 1 - d)`, d = log q - log p: the same, since p and q each add up to 1, but what float32 loses
    of the logarithms counts d times as much, which of one layer's rounding is next to nothing instead of percents.
    """
    found = logits.float().log_softmax(-1)
    p = reference.exp()
    apart = torch.where(p > 0, found - reference, 0.0)
    near = apart.clamp(max=1.0)
    total = (p * (near.expm1() - apart)).sum(-1)
    far = (apart > 1.0) | (p == 0)  # e^d would be too large for what p is small enough for
    if far.any():
        total += torch.where(far, found.exp() - p * (near.expm1() + 1), 0.0).sum(-1)
    return total
