"""What every expert writes over a run's sequences, reduced while the model runs: no output is kept."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from outlier_features.errors import InputError
from outlier_features.experts.expert_load import COUNTS, LoadCounts
from outlier_features.experts.moe_layers import ExpertCall, MoeLayer, find_moe_layers, recording
from outlier_features.model.loading import Loading
from outlier_features.model.models import LoadedModel, load_model
from outlier_features.model.sites import Site, find_sites, hooked
from outlier_features.model.verify_sites import TOLERANCE
from outlier_features.tokens.tokens import Tokens

EXPERT, SHARED = "expert", "shared"
MAXIMA = {
    "layer": pl.UInt16, "part": pl.String, "expert": pl.UInt16, "max_abs": pl.Float64, "max_abs_weighted": pl.Float64,
    "sequence": pl.UInt32, "token": pl.UInt32, "dim": pl.UInt32, "tokens_routed": pl.Int64, "mean_weight": pl.Float64,
    "max_abs_input": pl.Float64, "neuron": pl.UInt32,
}  # fmt: skip
PARTS = {
    "layer": pl.UInt16, "sequence": pl.UInt32, "token": pl.UInt32, "dim": pl.UInt32, "part": pl.String,
    "expert": pl.UInt16, "weight": pl.Float64, "value": pl.Float64, "weighted": pl.Float64, "whole": pl.Float64,
    "mlp_out": pl.Float64,
}  # fmt: skip

Location = tuple[int, int, int]  # sequence, position, dim


@dataclass(frozen=True)
class Recorded:
    """Of every expert of each layer its `maxima` (columns `MAXIMA`) and `counts` (`COUNTS`); and `parts` (`PARTS`), at
    the locations asked.

    active_parameters   of the model, those that a token uses
    absent              why there are none, where `expert_out` cannot be recorded
    """

    maxima: pl.DataFrame
    counts: pl.DataFrame
    parts: pl.DataFrame
    active_parameters: int = 0
    absent: str | None = None


def record_model(
    location: Path,
    run: Tokens,
    *,
    ranked: Sequence[int],
    locations: Sequence[Location],
    **loading: Unpack[Loading],
) -> Recorded | None:
    """`record_experts` on the model in the directory `location`; None where no block routes tokens to experts."""
    loaded = load_model(location, **loading)
    blocks = find_sites(loaded)
    if not any(block.routed for block in blocks):
        return None
    found = find_moe_layers(loaded, blocks)
    if found.absent:
        print(f"expert_out: absent ({found.absent})", file=sys.stderr)
        maxima, counts, parts = (pl.DataFrame(schema=schema) for schema in (MAXIMA, COUNTS, PARTS))
        return Recorded(maxima, counts, parts, absent=found.absent)
    return record_experts(loaded, found.layers, run, ranked=ranked, locations=locations)


def record_experts(
    loaded: LoadedModel,
    layers: Sequence[MoeLayer],
    run: Tokens,
    *,
    ranked: Sequence[int],
    locations: Sequence[Location],
) -> Recorded:
    """Run sequences one at a time, without their padding.

    ranked      sequences over which each expert's maxima are taken: of `abs(expert_out)` (`max_abs`, with the first
                place where it stands), of the same times the router's weight, or the shared expert's gate
                (`max_abs_weighted`), and of what a routed one's down projection reads (`max_abs_input`); and over which
                the positions that choose it are counted
    locations   where each part of each layer's output is wanted: `value` of `expert_out` there, `weight`, `weighted` =
                their product; `whole`: their sum as the model has it; `mlp_out`: what is added to the stream

    Raises `InputError` where the parts do not sum to the whole, and where an expert's output is not finite.
    """
    recorder = _ExpertRecorder(layers)
    parts = run.parts
    wanted: dict[int, list[tuple[int, int]]] = {}
    for sequence, position, dim in locations:
        wanted.setdefault(sequence, []).append((position, dim))
    for sequence in tqdm(sorted({*ranked, *wanted}), desc="experts", unit="sequence", file=sys.stderr):
        ids = torch.from_numpy(run.tokens[sequence][run.mask[sequence]].astype(np.int64)).to(loaded.device)[None]
        recorder.begin(sequence, parts[sequence][run.mask[sequence]], sequence in set(ranked), wanted.get(sequence, []))
        with (
            recording(loaded.model, recorder.expert),
            hooked(recorder.sites(), recorder.tensor),
            torch.inference_mode(),
        ):
            loaded.base(ids)
    active = loaded.parameters - sum(layer.unused for layer in layers)
    return replace(recorder.recorded(), active_parameters=active)


@dataclass
class _Maximum:
    """Of one expert over the sequences so far."""

    value: float | None = None
    weighted: float = 0.0
    at: Location | tuple[None, None, None] = (None, None, None)
    rows: int = 0
    weight: float = 0.0
    read: float | None = None
    neuron: int | None = None

    def add_input(self, neurons: torch.Tensor) -> None:
        """What the down projection reads at some positions, (n, M)."""
        at = int(neurons.abs().argmax())
        value = abs(float(neurons.reshape(-1)[at]))
        if self.read is None or value > self.read:
            self.read, self.neuron = value, at % neurons.shape[1]

    def add(self, sequence: int, rows: torch.Tensor, output: torch.Tensor, weight: torch.Tensor) -> None:
        """Outputs (n, H) with their weights (n,) at the positions `rows`."""
        absolute = output.abs()
        largest, dims = absolute.max(dim=1)
        best = int(largest.argmax())
        value = float(largest[best])
        if not math.isfinite(value):
            raise InputError(
                f"dtype: {output.dtype} gives expert outputs that are not finite in sequence {sequence}, expected "
                "finite activations; set `dtype: float32` for this model"
            )
        if self.value is None or value > self.value:
            self.value, self.at = value, (sequence, int(rows[best]), int(dims[best]))
        weights = weight.cpu().double()  # not every device has float64
        self.weighted = max(self.weighted, float((largest.cpu().double() * weights.abs()).max()))
        self.rows += len(rows)
        self.weight += float(weights.sum())


@dataclass
class _RunningLayer:
    """A block in the pass that runs: parts at the locations wanted, and the shared expert until its gate is known."""

    parts: list[list[tuple[str, int | None, float, float]]] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    shared: torch.Tensor | None = None
    gate: torch.Tensor | None = None


class _ExpertRecorder:
    def __init__(self, layers: Sequence[MoeLayer]):
        self._layers = {layer.layer: layer for layer in layers}
        self._of_module = {layer.experts: layer.layer for layer in layers}
        self._maxima = {
            (layer.layer, part): _Maximum()
            for layer in layers
            for part in [*range(layer.count), *([SHARED] if layer.shared else [])]
        }
        self._loads = {layer.layer: LoadCounts.of(layer.count) for layer in layers}
        self._rows: list[dict[str, object]] = []

    def sites(self) -> Iterator[tuple[tuple[int, str], Site]]:
        """The modules to hook, by layer and name."""
        for layer in self._layers.values():
            named = {"shared": layer.shared, "gate": layer.gate, "whole": layer.whole, "mlp_out": layer.mlp_out}
            yield from (((layer.layer, name), site) for name, site in named.items() if site)

    def begin(self, sequence: int, parts: np.ndarray[Any, Any], ranked: bool, wanted: list[tuple[int, int]]) -> None:
        """The sequence that runs next, the part of each of its positions, and what is asked of it."""
        self._sequence, self._parts, self._ranked, self._wanted = sequence, parts, ranked, wanted
        self._places = torch.tensor(wanted, dtype=torch.int64).reshape(-1, 2).T
        self._running = {index: _RunningLayer([[] for _ in wanted]) for index in self._layers}

    def expert(self, call: ExpertCall) -> None:
        index = self._of_module[call.experts]
        if self._ranked:
            self._loads[index].add(call.expert, self._parts[call.rows.cpu().numpy()], call.weight)
            self._maxima[index, call.expert].add_input(call.neurons)
        self._take(index, EXPERT, call.expert, call.rows, call.output, call.weight)

    def tensor(self, key: tuple[int, str], value: torch.Tensor) -> None:
        index, name = key
        running, value = self._running[index], value.reshape(-1, value.shape[-1])
        if name == "shared":
            running.shared = value.clone()
        elif name == "gate":
            running.gate = value.sigmoid()[:, 0]
        elif name == "whole":
            self._end(index, value)
        else:
            self._note(index, value)

    def _take(
        self, index: int, part: str, expert: int | None, rows: torch.Tensor, output: torch.Tensor, weight: torch.Tensor
    ) -> None:
        if self._ranked:
            self._maxima[index, part if expert is None else expert].add(self._sequence, rows, output, weight)
        if self._wanted:
            tokens, dims = self._places.to(rows.device)
            row, n = torch.where(rows[:, None] == tokens)
            values, weights = output[row, dims[n]].tolist(), weight[row].tolist()
            for place, value, one in zip(n.tolist(), values, weights, strict=True):
                self._running[index].parts[place].append((part, expert, one, value))

    def _end(self, index: int, whole: torch.Tensor) -> None:
        """All parts of a layer have been seen."""
        running = self._running[index]
        if running.shared is not None:
            weight = torch.ones_like(running.shared[:, 0]) if running.gate is None else running.gate
            rows = torch.arange(len(whole), device=whole.device)
            self._take(index, SHARED, None, rows, running.shared, weight)
            running.shared = running.gate = None
        for (position, dim), parts in zip(self._wanted, running.parts, strict=True):
            found = float(whole[position, dim])
            running.whole.append(found)
            weighted = [weight * value for _, _, weight, value in parts]
            rms = float(whole[position].float().square().mean().sqrt())
            allowed = TOLERANCE[whole.dtype] * (sum(map(abs, weighted)) + abs(found) + rms)
            if not abs(sum(weighted) - found) <= allowed:
                raise InputError(
                    f"experts: the parts of layer {index} at sequence {self._sequence}, token {position}, dim {dim} "
                    f"sum to {sum(weighted):.6g}, expected the MLP's output {found:.6g}"
                )

    def _note(self, index: int, mlp_out: torch.Tensor) -> None:
        running = self._running[index]
        for n, (position, dim) in enumerate(self._wanted):
            for part, expert, weight, value in running.parts[n]:
                self._rows.append({
                    "layer": index, "sequence": self._sequence, "token": position, "dim": dim, "part": part,
                    "expert": expert, "weight": weight, "value": value, "weighted": weight * value,
                    "whole": running.whole[n], "mlp_out": float(mlp_out[position, dim]),
                })  # fmt: skip

    def recorded(self) -> Recorded:
        rows = []
        for (layer, part), one in self._maxima.items():
            sequence, position, dim = one.at
            rows.append({
                "layer": layer, "part": SHARED if part == SHARED else EXPERT,
                "expert": None if part == SHARED else part, "max_abs": one.value,
                "max_abs_weighted": None if one.value is None else one.weighted,
                "sequence": sequence, "token": position, "dim": dim, "tokens_routed": one.rows,
                "mean_weight": one.weight / one.rows if one.rows else None,
                "max_abs_input": one.read, "neuron": one.neuron,
            })  # fmt: skip
        counts = pl.concat([load.rows(layer) for layer, load in self._loads.items()])
        return Recorded(pl.DataFrame(rows, schema=MAXIMA), counts, pl.DataFrame(self._rows, schema=PARTS))
