"""The direct contribution of each head and neuron to the logits of a sequence's next tokens.

What a part adds to the stream at a position goes on to the end as it is, so the logit there is a sum over parts, once
the factors of the norms that it goes through are taken as they were in the model's own pass. A sequence is run twice:
first for the final norm's factors, then sublayer by sublayer, of which only one is held.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from outlier_features.errors import InputError
from outlier_features.gallery.logit_directions import LogitDirections, Predicted
from outlier_features.gallery.unembedding import Unembedding
from outlier_features.gallery.written_parts import Matrix, Sublayer, sublayers_of
from outlier_features.model.forward_pass import run_blocks
from outlier_features.model.models import LoadedModel, probe_ids
from outlier_features.model.sites import Site, find_sites, hooked
from outlier_features.model.verify_sites import TOLERANCE
from outlier_features.norms.norm_forms import NormCall, norm_calls
from outlier_features.origin.block_parts import exact
from outlier_features.origin.mlp_weights import weight_of

Tensor = torch.Tensor


@dataclass(frozen=True)
class Contributions:
    """Of parts to the centred logit at n positions (n, parts): products in float32 on the model's device where they are
    `head`s or `neuron`s, float64 on the CPU else.

    layer   None where the parts are of no block
    """

    part: str
    layer: int | None
    values: Tensor


Receive = Callable[[Contributions], None]


class AttributedLogits:
    """A model whose logits are the sum of the contributions of its parts, which is tried on the probe.

    one_part   why the heads or neurons of some sublayers are not told apart

    Raises `InputError` on construction where they are not.
    """

    def __init__(self, loaded: LoadedModel):
        self._loaded = loaded
        blocks = find_sites(loaded)
        calls: Mapping[nn.Module, NormCall] = {call.module: call for call in norm_calls(loaded).values()}
        self._directions = LogitDirections(loaded, Unembedding.of(loaded, calls))
        self._sublayers, self.one_part = sublayers_of(loaded, blocks, calls)
        self._first, self._last = blocks[0].sites["resid_pre"], blocks[-1].sites["resid_post"]
        for ids in probe_ids(loaded.model):
            self.run(ids.cpu(), torch.ones(len(ids), dtype=torch.bool), lambda found: None)

    @torch.inference_mode()
    def run(self, ids: Tensor, mask: Tensor, receive: Receive) -> tuple[Tensor, Tensor]:
        """Run a sequence, ids int64 (T,) and mask bool (T,) on the CPU. Each part's contributions go to `receive`,
        sublayer by sublayer, and what rounding leaves of the logit; together they are the logit.

        Returns the positions that predict a token, int64 (n,), and the centred logit there, float64 (n,).

        Raises `InputError` where rounding does not explain what is left.
        """
        predicting = (mask[:-1] & mask[1:]).nonzero()[:, 0]
        if not len(predicting):
            return predicting, torch.zeros(0, dtype=torch.float64)
        streams = self._pass(ids, mask, {"last": self._last}, predicting)
        predicted = self._directions.of(streams["last"], ids[predicting + 1])
        total = _Total(predicted, receive)
        total.take("final_bias", None, predicted.constant[:, None])
        total.size += predicted.constant.abs()
        self._attribute(ids, mask, predicting, total)
        left = predicted.logits - total.sum
        allowed = TOLERANCE[self._loaded.dtype] * (total.size + predicted.size)
        if not bool((left.abs() <= allowed).all()):
            worst = int((left.abs() / allowed).nan_to_num(torch.inf).argmax())
            raise InputError(
                f"{self._loaded.model_type}: the contributions of its parts sum to a centred logit of "
                f"{float(total.sum[worst]):.6g}, expected {float(predicted.logits[worst]):.6g}, as the model has it, "
                "within rounding"
            )
        receive(Contributions("rounding", None, left[:, None]))
        return predicting, predicted.logits

    def _pass(self, ids: Tensor, mask: Tensor, sites: Mapping[str, Site], predicting: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def receive(name: str, value: Tensor) -> None:
            found[name] = _rows(value, predicting)

        with hooked(sites.items(), receive):
            run_blocks(self._loaded, ids[None].to(self._loaded.device), mask[None].to(self._loaded.device))
        return found

    def _attribute(self, ids: Tensor, mask: Tensor, predicting: Tensor, total: "_Total") -> None:
        held: dict[str, Tensor] = {}

        def receive(key: tuple[str, Sublayer | None], value: Tensor) -> None:
            what, sublayer = key
            rows = _rows(value, predicting)
            if sublayer is None:
                total.whole("embeddings", None, exact(rows))
            elif what != "out":
                held[what] = rows
            else:
                total.add(sublayer, held, rows)
                held.clear()

        sites: list[tuple[tuple[str, Sublayer | None], Site]] = [(("first", None), self._first)]
        for one in self._sublayers:
            if one.matrix:
                sites.append((("read", one), one.matrix.read))
                if one.matrix.norm:
                    sites.append((("written", one), one.matrix.written))
            sites.append((("out", one), one.out))
        with hooked(sites, receive):
            run_blocks(self._loaded, ids[None].to(self._loaded.device), mask[None].to(self._loaded.device))


class _Total:
    """Sums up the contributions that it hands on, float64 (n,).

    size   what the sum may be rounded by goes with it: abs of each dim of what each sublayer writes times its reader
    """

    def __init__(self, predicted: Predicted, receive: Receive):
        self._readers, self._receive = predicted.readers, receive
        self.sum = torch.zeros_like(predicted.logits)
        self.size = torch.zeros_like(predicted.logits)

    def take(self, part: str, layer: int | None, values: Tensor) -> None:
        self.sum += (values.float() if values.device.type == "mps" else values.double()).sum(1).cpu().double()
        self._receive(Contributions(part, layer, values))

    def whole(self, part: str, layer: int | None, written: Tensor) -> None:
        """Take one part, float64 (n, H)."""
        terms = self._readers * written
        self.size += terms.abs().sum(1)
        self.take(part, layer, terms.sum(1, keepdim=True))

    def add(self, sublayer: Sublayer, held: Mapping[str, Tensor], out: Tensor) -> None:
        """Take a sublayer; `held`: what its matrix read and wrote, `out` (n, H): its output."""
        written = sublayer.scale * exact(out)
        if sublayer.matrix is None:
            self.whole(sublayer.name, sublayer.layer, written)
            return
        self.size += (self._readers * written).abs().sum(1)
        readers, matrix, bias = self._readers * sublayer.scale, sublayer.matrix, None
        if matrix.norm is not None:
            if matrix.norm.scaling.bias is not None:
                bias = readers @ matrix.norm.scaling.bias
            readers = matrix.norm.scaling.before(readers) * matrix.norm.factor(held["written"])
        weight = weight_of(matrix.read.module)  # (H, parts x width)
        own = getattr(matrix.read.module, "bias", None)
        if own is not None:
            of_matrix = readers @ exact(own.detach())
            bias = of_matrix if bias is None else bias + of_matrix
        self.take(matrix.part, sublayer.layer, _of_parts(readers, weight, held["read"], matrix))
        if bias is not None:
            self.take(f"{sublayer.name}_bias", sublayer.layer, bias[:, None])


def _of_parts(readers: Tensor, weight: Tensor, read: Tensor, matrix: Matrix) -> Tensor:
    """(n, parts) in float32: what each part writes through the matrix, as the readers (n, H) read it."""
    terms = (readers.float().to(weight.device) @ weight.float()).to(read.device) * read.float()
    return terms.reshape(len(terms), matrix.count, -1).sum(2)


def _rows(value: Tensor, positions: Tensor) -> Tensor:
    """A copy of what a sequence's tensor, (1, T, H) or (T, H), is at these positions."""
    return value.reshape(-1, value.shape[-1])[positions.to(value.device)]
