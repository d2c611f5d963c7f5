"""Which tokens' logits a neuron raises and lowers by what it writes, through the final norm and the unembedding.

The norm divides by a number that depends on the whole stream, which is left out, as is what is done to logits after the
unembedding (a factor, soft-capping): neither changes which of a direction's effects is larger.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from outlier_features.errors import InputError
from outlier_features.experts.moe_layers import MoeLayer
from outlier_features.model.hooks import hooks
from outlier_features.model.models import LoadedModel, probe_ids
from outlier_features.model.on_demand import require_weights
from outlier_features.model.sites import Block
from outlier_features.model.tensors import first_tensor, same_values
from outlier_features.norms.norm_forms import NormCall, norm_calls

Array = np.ndarray[Any, Any]
Tensor = torch.Tensor
TOKENS = 10
_LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True)
class Scaling:
    """What a norm does to a direction, its division left out: the mean is taken off first or not, times the gain."""

    centres: bool
    gain: Tensor

    def of(self, directions: Tensor) -> Tensor:
        """Directions float64 (n, H)."""
        if self.centres:
            directions = directions - directions.mean(dim=1, keepdim=True)
        return directions * self.gain


class LogitEffects:
    """The way from what a block's neurons write to the logits.

    Raises `InputError` on construction, with the reason, where there is none that is a norm and a matrix.
    """

    def __init__(self, loaded: LoadedModel, blocks: list[Block], experts: Mapping[int, MoeLayer]):
        if loaded.part == "encoder" or loaded.no_loss:
            raise InputError(loaded.no_loss or "an encoder has no unembedding")
        self._blocks, self._experts = blocks, experts
        self._calls = {call.module: call for call in norm_calls(loaded).values()}
        self._scalings: dict[Any, Scaling | None] = {}
        self._head: Any = loaded.model.get_output_embeddings()
        self._end = self._after_the_blocks(loaded)
        require_weights(self._head)
        self._unembedding = self._head.weight.detach()
        if tuple(self._unembedding.shape[1:]) != (loaded.d_model,):
            raise InputError(f"its unembedding is of shape {list(self._unembedding.shape)}, not of its residual stream")

    def directions(self, layer: int, written: Array, *, routed: bool) -> Tensor | None:
        """What the unembedding reads of columns of W_down, float64 (H, n), as (n, H); None where norms stand between
        the block and the end, or it is not known what one does.

        routed   they are of a routed expert
        """
        if any(block.closing_norm is not None for block in self._blocks[layer:]):
            return None
        found = torch.from_numpy(written.T.copy())
        if routed:
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
        return found if self._end is None else self._end.of(found)

    def largest(self, directions: Tensor) -> tuple[list[dict[str, list[Any]]], ...]:
        """For each of the directions (n, H): `tokens` and `logits` of the ten that it raises most, and of those that it
        lowers most, the strongest first."""
        top: list[dict[str, list[Any]]] = []
        bottom: list[dict[str, list[Any]]] = []
        unembedding = self._unembedding.to("cpu", torch.float32)
        at_once = max(1, _LOGITS_AT_ONCE // len(self._unembedding))
        for some in directions.split(at_once):
            logits = some.to("cpu", torch.float32) @ unembedding.T
            for found, largest in ((top, True), (bottom, False)):
                values, tokens = logits.topk(min(TOKENS, logits.shape[1]), dim=1, largest=largest)
                found += [
                    {"tokens": one.tolist(), "logits": value.tolist()}
                    for one, value in zip(tokens, values, strict=True)
                ]
        return top, bottom

    @torch.inference_mode()
    def _after_the_blocks(self, loaded: LoadedModel) -> Scaling | None:
        """What is done to the stream behind the last block; None for nothing."""
        if self._head is None or not isinstance(getattr(self._head, "weight", None), torch.Tensor):
            raise InputError("it has no unembedding")
        ids = probe_ids(loaded.model)
        outputs: dict[Any, Tensor] = {}
        reads: dict[Any, Tensor] = {}

        def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            if (read := first_tensor((args, kwargs))) is not None:
                reads[module] = read.clone()
            if (made := first_tensor(output)) is not None:
                outputs[module] = made.clone()

        last = loaded.stack.blocks[-1].module
        watched = {last, self._head, *self._calls}
        given = {"input_ids": ids[:, 1:], "decoder_input_ids": ids} if loaded.part else {"input_ids": ids}
        with hooks(after=[(module, keep) for module in watched]):
            loaded.model(**given)
        stream, read = outputs[last], reads[self._head]
        scale = _multiple(read, stream)
        if scale is not None:
            return Scaling(False, torch.full((read.shape[-1],), scale, dtype=torch.float64))
        for module in self._calls:
            if module in (last, self._head) or module not in outputs or not same_values(reads[module], stream):
                continue
            scale, scaling = _multiple(read, outputs[module]), self._scaling(module)
            if scale is not None and scaling is not None:
                return Scaling(scaling.centres, scaling.gain * scale)
        raise InputError("what its unembedding reads is not the last block's output after one norm")

    def _scaling(self, module: Any) -> Scaling | None:
        if module not in self._scalings:
            self._scalings[module] = self._found_scaling(module)
        return self._scalings[module]

    def _found_scaling(self, module: Any) -> Scaling | None:
        call: NormCall | None = self._calls.get(module)
        if call is None or not call.fits:
            return None
        forms = call.forms()
        if len(forms) != 1:
            return None
        (form,) = forms
        width = call.read.shape[-1]
        gain = call.parameters[form.gain].detach().cpu().double() if form.gain else torch.zeros(width).double()
        return Scaling(form.kind == "layer", form.offset + gain)


def _multiple(found: Tensor, expected: Tensor) -> float | None:
    """The number that `expected` was multiplied by to make `found`; None where it was not."""
    if found.numel() != expected.numel():
        return None
    x, y = expected.double().cpu().flatten(), found.double().cpu().flatten()
    if torch.equal(x, y):
        return 1.0
    scale = float(x @ y / (x @ x))
    close = (y - scale * x).abs() <= torch.finfo(found.dtype).eps * 4 * (y.abs() + (scale * x).abs())
    return scale if bool(close.all()) and scale > 0 else None
