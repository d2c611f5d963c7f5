"""Token losses from the same pass that gives the activations, without the logits of a whole batch.

The logits of 16 sequences of 2,048 tokens over 50,000 words take 6.5 GB. The model's own way from last hidden states to
logits (head, bias, scaling, softcapping) therefore runs on a few tokens at a time: the part of the model that holds the
blocks is made to return those tokens' states at once, and the whole model is called.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from outlier_features.errors import InputError
from outlier_features.model.hooks import hooks, returning
from outlier_features.model.models import LoadedModel, probe_ids
from outlier_features.model.placement import beside
from outlier_features.model.verify_sites import TOLERANCE

Tensor = torch.Tensor
_LOGITS_AT_ONCE = 2**24


class LossRecorder:
    """Token losses of a causal model, one batch after the other.

        with recorder.states():
            loaded.base(ids)
        nll = recorder.token_losses(ids, mask)

    Raises `InputError` on construction where the blocked logits of the probe are not those of the plain model.
    `loss_recorder` says then that there is no loss.
    """

    def __init__(self, loaded: LoadedModel):
        self._model, self._part = loaded.model, loaded.part
        self._body: Any = loaded.body
        self._block = max(1, _LOGITS_AT_ONCE // loaded.vocab_size)
        self._output: Any = None
        self._encoded: Any = None  # of a decoder's encoder
        self._check(loaded)

    def states(self) -> AbstractContextManager[None]:
        """Keep what the model's body returns in a pass."""

        def keep(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._output = output

        def keep_encoded(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._encoded = output

        encoder = [(self._model.get_encoder(), keep_encoded)] if self._part else []
        return hooks(after=[(self._body, keep), *encoder])

    def token_losses(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The negative log-likelihood in nats of each token given those before it, float32 (B, T).

        ids int64 (B, T) as in the pass, mask bool (B, T); 0 at the first position and at padding. Each sequence is cut
        into blocks for itself, so its losses do not depend on its batch.
        """
        return self.token_scores(ids, mask)[0]

    @torch.inference_mode()
    def token_scores(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`token_losses`, and in the same shape the largest probability that the model gave to any token there."""
        nll, top1 = (torch.zeros(ids.shape, dtype=torch.float32, device=ids.device) for _ in range(2))
        for there, logits in self.logits(ids, self.last):
            nll[there], top1[there] = scores_of(logits, ids[there])
        return nll * mask, top1 * mask

    @property
    def last(self) -> Any:
        """What the model's body returned in the last pass, which `logits` takes."""
        return self._output

    def logits(self, ids: Tensor, output: Any, skip: int = 0) -> Iterator[tuple[tuple[int, slice], Tensor]]:
        """Where some tokens lie that a pass over `ids` (B, T) predicts, and the logits (n, vocabulary) that do so.

        output   of the body in that pass
        skip     so many of them, the first ones, are not made
        """
        length = ids.shape[1] - 1
        starts = [(sequence, start) for sequence in range(len(ids)) for start in range(0, length, self._block)]
        for sequence, start in starts[skip:]:
            stop = min(start + self._block, length)
            logits = self._logits(output, sequence, start, stop, ids[sequence])
            yield (sequence, slice(start + 1, stop + 1)), logits

    def _logits(self, output: Any, sequence: int, start: int, stop: int, row: Tensor) -> Tensor:
        """The logits (stop - start, vocabulary) at these positions."""
        states = output[0][sequence : sequence + 1, start:stop]
        answer = (states,) if isinstance(output, tuple) else type(output)(last_hidden_state=states)
        with returning(self._body, {0}, lambda: answer):
            return self._run(row[None, start:stop], has_states=True)[0]

    def _run(self, ids: Tensor, has_states: bool = False) -> Tensor:
        """The logits of the whole model; a decoder reads its own ids, and its encoder those after the start token.

        has_states   of a decoder that returns at once, so that its encoder need not run
        """
        given: dict[str, Any] = {"input_ids": ids}
        if self._part:
            given = {"input_ids": ids[:, 1:], "decoder_input_ids": ids}
        if self._part and has_states:
            given |= {"input_ids": None, "encoder_outputs": self._encoded}
        logits: Tensor = self._model(**given).logits
        return beside(logits, ids)

    @torch.inference_mode()
    def _check(self, loaded: LoadedModel) -> None:
        ids = probe_ids(loaded.model)
        expected = self._run(ids)
        with self.states():
            loaded.base(ids)
        half, length = ids.shape[1] // 2, ids.shape[1]
        parts = [
            self._logits(self._output, n, *span, row)
            for n, row in enumerate(ids)
            for span in ((0, half), (half, length))
        ]
        found = torch.cat(parts).view_as(expected)
        allowed = TOLERANCE[loaded.dtype] * (expected.abs() + expected.square().mean(-1, keepdim=True).sqrt())
        difference = (found - expected).abs()
        if not (difference <= allowed).all():
            raise InputError(
                f"{loaded.model_type}: its head run on a few tokens at a time differs from the plain model by "
                f"{difference.max():.3g}, expected the same logits"
            )


def loss_recorder(loaded: LoadedModel) -> tuple[LossRecorder | None, str | None]:
    """A recorder, or why the model has no loss of the next token."""
    if loaded.no_loss:
        return None, loaded.no_loss
    try:
        return LossRecorder(loaded), None
    except (InputError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return None, f"its logits cannot be had from the states of its last block: {error}"


def scores_of(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy (n,) of logits (n, V) with token ids (n,), and the largest probability (n,).

    The exponentials are added up in float64 where the device has it: in float32 the sum over a vocabulary is off by
    some 1e-6, and always to the same side.
    """
    logits = logits.float()
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    largest = logits.amax(dim=-1, keepdim=True)
    total = (logits - largest).exp_().sum(dim=-1, dtype=wide)
    chosen = logits.gather(-1, targets[:, None]) - largest
    return (total.log() - chosen[:, 0].to(wide)).float(), total.reciprocal().float()
