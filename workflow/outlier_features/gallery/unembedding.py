"""What a model does to the stream behind its last block, up to its logits: proven on the probe, step by step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from outlier_features.errors import InputError
from outlier_features.model.hooks import hooks
from outlier_features.model.models import LoadedModel, probe_ids
from outlier_features.model.on_demand import require_weights
from outlier_features.model.tensors import first_tensor, same_values
from outlier_features.norms.norm_forms import NormCall

Tensor = torch.Tensor


@dataclass(frozen=True)
class Unembedding:
    """The way from the last block's output to the logits.

    norm      the call of the norm that reads that output, or None
    factor    the head reads so many times what the norm gives
    head      the module that reads it, with a weight (V, H)
    logits    the head's output on the probe, `returned` what the model made of it
    """

    norm: NormCall | None
    factor: float
    head: Any
    logits: Tensor
    returned: Tensor

    @classmethod
    @torch.inference_mode()
    def of(cls, loaded: LoadedModel, calls: Mapping[nn.Module, NormCall]) -> "Unembedding":
        """From a pass over the probe; `calls`: those of `norm_calls` by module.

        Raises `InputError`, with the reason, where there is none that is a norm, a number and a matrix.
        """
        if loaded.part == "encoder" or loaded.no_loss:
            raise InputError(loaded.no_loss or "an encoder has no unembedding")
        head: Any = loaded.model.get_output_embeddings()
        if head is None or not isinstance(getattr(head, "weight", None), torch.Tensor):
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
        given = {"input_ids": ids[:, 1:], "decoder_input_ids": ids} if loaded.part else {"input_ids": ids}
        with hooks(after=[(module, keep) for module in {last, head, *calls}]):
            returned = loaded.model(**given).logits
        if tuple(head.weight.shape[1:]) != (loaded.d_model,):
            raise InputError(f"its unembedding is of shape {list(head.weight.shape)}, not of its residual stream")
        stream, read = outputs[last], reads[head]
        factor = multiple_of(read, stream)
        if factor is not None:
            return cls(None, factor, head, outputs[head], returned)
        for module, call in calls.items():
            if module in (last, head) or module not in outputs or not same_values(reads[module], stream):
                continue
            factor = multiple_of(read, outputs[module])
            if factor is not None:
                return cls(call, factor, head, outputs[head], returned)
        raise InputError("what its unembedding reads is not the last block's output after one norm")

    @property
    def weight(self) -> Tensor:
        """(V, H), in the model's dtype and on its device."""
        require_weights(self.head)
        found: Tensor = self.head.weight.detach()
        return found

    @property
    def bias(self) -> Tensor | None:
        """(V,)"""
        require_weights(self.head)
        found = getattr(self.head, "bias", None)
        return None if found is None else found.detach()

    def logit_factor(self, soft_cap: float | None) -> float:
        """The number that the model multiplies the head's output by (Cohere, Granite), before soft-capping.

        soft_cap   of its config, if that names one: logits are then soft_cap x tanh(output / soft_cap)

        Raises `InputError` where it does something else to them.
        """
        found = multiple_of(self.returned, self.logits)
        if found is not None:
            return found
        if soft_cap:
            capped = soft_cap * (self.logits.double() / soft_cap).tanh()
            allowed = 8 * torch.finfo(self.returned.dtype).eps * capped.abs()
            if bool(((self.returned.double() - capped).abs() <= allowed).all()):
                return 1.0
        raise InputError("its logits are neither a number times what its unembedding gives nor that soft-capped")


def multiple_of(found: Tensor, expected: Tensor) -> float | None:
    """The number that `expected` was multiplied by to make `found`; None where it was not."""
    if found.numel() != expected.numel():
        return None
    x, y = expected.double().cpu().flatten(), found.double().cpu().flatten()
    if torch.equal(x, y):
        return 1.0
    scale = float(x @ y / (x @ x))
    close = (y - scale * x).abs() <= torch.finfo(found.dtype).eps * 4 * (y.abs() + (scale * x).abs())
    return scale if bool(close.all()) and scale > 0 else None
