"""Contributions to logits summed up over positions, and the largest of each position."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch

from outlier_features.gallery.attributed_logits import Contributions
from outlier_features.gallery.attribution_schema import LOGIT_ATTRIBUTION, LOGIT_ATTRIBUTION_TOKENS

Tensor = torch.Tensor
TOP = 5
_RANKED = ("head", "neuron")
_ORDER = ("embeddings", "head", "attention", "attention_bias", "mixer", "cross_attention", "neuron", "mlp", "mlp_bias",
          "final_bias", "rounding")  # fmt: skip


@dataclass
class _Extreme:
    """Of m parts, float32 (m,) with the place where it stands, int64 (m,)."""

    value: Tensor
    place: Tensor

    def take(self, value: Tensor, place: Tensor, better: Tensor) -> None:
        self.value = torch.where(better, value, self.value)
        self.place = torch.where(better, place, self.place)


class AttributionSums:
    """Sums of the contributions of each part, in float64, on the device that they come from.

    Positions of all sequences are counted through: `begin` says which come next.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int | None], tuple[Tensor, Tensor]] = {}
        self._largest: dict[tuple[str, int | None], _Extreme] = {}
        self._smallest: dict[tuple[str, int | None], _Extreme] = {}
        self._positions: list[Tensor] = []  # (n, 3): sequence, token, target
        self._top: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # value, layer, index (n, TOP)
        self._before = 0

    def begin(self) -> None:
        """A sequence: its contributions come next."""
        self._top = {}

    def take(self, found: Contributions) -> None:
        key, values = (found.part, found.layer), found.values
        exact = values.float() if values.device.type == "mps" else values.double()
        sums = (exact.sum(0), exact.abs().sum(0))
        before = self._sums.get(key)
        self._sums[key] = sums if before is None else (before[0] + sums[0], before[1] + sums[1])
        for extremes, find in ((self._largest, torch.max), (self._smallest, torch.min)):
            value, at = find(values.float(), dim=0)
            at = at + self._before
            if key not in extremes:
                extremes[key] = _Extreme(value, at)
            else:
                known = extremes[key]
                known.take(value, at, value > known.value if find is torch.max else value < known.value)
        if found.part in _RANKED:
            self._rank(found)

    def end(self, sequence: int, positions: Tensor, targets: Tensor, logits: Tensor) -> pl.DataFrame:
        """Its positions, the ids that come next and their centred logits (n,); gives rows of
        `LOGIT_ATTRIBUTION_TOKENS`."""
        self._positions.append(torch.stack([torch.full_like(positions, sequence), positions, targets], dim=1))
        self._before += len(positions)
        frames = [pl.DataFrame(schema=LOGIT_ATTRIBUTION_TOKENS.schema)]
        for part, (value, layer, index) in self._top.items():
            width = value.shape[1]
            columns = {
                "sequence": torch.full((len(positions) * width,), sequence),
                "token": positions.repeat_interleave(width),
                "target": targets.repeat_interleave(width),
                "centred_logit": logits.repeat_interleave(width),
                "rank": torch.arange(1, width + 1).repeat(len(positions)),
                "layer": layer.flatten(),
                "index": index.flatten(),
                "value": value.flatten(),
            }
            frame = pl.DataFrame({name: column.numpy() for name, column in columns.items()})
            frames.append(LOGIT_ATTRIBUTION_TOKENS.cast(frame.with_columns(part=pl.lit(part))))
        return pl.concat(frames).sort("sequence", "token", "part", "rank")

    def rows(self) -> Iterator[pl.DataFrame]:
        """Those of `LOGIT_ATTRIBUTION`, by part, layer and index."""
        yield pl.DataFrame(schema=LOGIT_ATTRIBUTION.schema)
        if not self._before:
            return
        places = torch.cat(self._positions)
        for part, layer in sorted(self._sums, key=lambda key: (_ORDER.index(key[0]), -1 if key[1] is None else key[1])):
            sums, absolute = (value.cpu().numpy() for value in self._sums[part, layer])
            columns: dict[str, Any] = {
                "mean": sums / self._before,
                "mean_abs": absolute / self._before,
                "index": range(len(sums)),
            }
            for name, extremes in (("largest", self._largest), ("smallest", self._smallest)):
                one = extremes[part, layer]
                columns[name] = one.value.cpu().numpy()
                for n, what in enumerate(("sequence", "token", "target")):
                    columns[f"{name}_{what}"] = places[one.place.cpu(), n].numpy()
            frame = pl.DataFrame(columns).with_columns(
                part=pl.lit(part),
                layer=pl.lit(layer),
                expert=pl.lit(None),
                positions=pl.lit(self._before),
                index=pl.col("index") if part in _RANKED else pl.lit(None),
            )
            yield LOGIT_ATTRIBUTION.cast(frame)

    def _rank(self, found: Contributions) -> None:
        values, layer = found.values.cpu(), -1 if found.layer is None else found.layer
        index = torch.arange(values.shape[1]).expand(values.shape)
        new = _largest(values, torch.full(values.shape, layer), index)
        if found.part in self._top:
            value, layers, indices = (torch.cat(pair, dim=1) for pair in zip(self._top[found.part], new, strict=True))
            new = _largest(value, layers, indices)
        self._top[found.part] = new


def _largest(value: Tensor, layer: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row the columns of the largest abs(value), the largest first."""
    best = value.abs().topk(min(TOP, value.shape[1]), dim=1).indices
    return value.gather(1, best), layer.gather(1, best), index.gather(1, best)
