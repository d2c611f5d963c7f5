"""Tables of ranked neurons made by looking at every activation, from plain hooks on a model's own modules."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from outlier_features.files.tables import write_table
from outlier_features.neurons.neurons_schema import NEURON_STATISTICS, NEURONS
from outlier_features.tokens.tokens import Tokens

Key = tuple[int, int | None, int]  # layer, expert, neuron
POPULATIONS = ("all", "without_first")


def down_projections(model: Any) -> list[torch.nn.Module]:
    """The last matrix of each block's dense MLP, or of its shared expert."""
    names = ("mlp.down_proj", "mlp.shared_expert.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "output.dense", "fc2")
    ends = tuple(f".{name}" for name in names)
    return [module for path, module in model.named_modules() if path.endswith(ends) and "attention" not in path]


def activations(model: Any, run: Tokens) -> dict[Key, np.ndarray]:
    """What the last matrix of each block, or of each expert, reads: float32 (N, T), NaN at padding and where an expert
    was not given the token; each sequence is run by itself."""
    found: dict[Key, np.ndarray] = {}
    sequence = 0

    def keep(layer: int, expert: int | None, rows: np.ndarray, values: torch.Tensor) -> None:
        for neuron, along in enumerate(values.float().numpy().T):
            own = found.setdefault((layer, expert, neuron), np.full(run.mask.shape, np.nan, np.float32))
            own[sequence, rows] = along

    handles = []
    for layer, module in enumerate(down_projections(model)):

        def take(module: Any, args: Any, layer: int = layer) -> None:
            keep(layer, None, np.arange(run.mask.shape[1]), args[0].reshape(-1, args[0].shape[-1]))

        handles.append(module.register_forward_pre_hook(take))
    experts = [module for path, module in model.named_modules() if path.endswith("mlp.experts")]
    for layer, module in enumerate(experts):

        def take_experts(module: Any, args: Any, kwargs: Any, layer: int = layer) -> None:
            hidden, index = (*args, *kwargs.values())[:2]
            for expert in range(len(module.down_proj)):
                rows = (index == expert).any(dim=1).nonzero()[:, 0]
                if len(rows):
                    gate, up = (hidden[rows] @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
                    keep(layer, expert, rows.numpy(), torch.nn.functional.silu(gate) * up)

        handles.append(module.register_forward_pre_hook(take_experts, with_kwargs=True))
    causal = "Bert" not in type(model).__name__
    with torch.inference_mode():
        for sequence, ids in enumerate(run.tokens):
            mask = None if causal else torch.from_numpy(run.mask[sequence].astype(np.int64))[None]
            model(torch.from_numpy(ids.astype(np.int64))[None], attention_mask=mask)
    for handle in handles:
        handle.remove()
    for values in found.values():
        values[~run.mask] = np.nan
    return {key: values for key, values in sorted(found.items(), key=str) if not np.isnan(values).all()}


def write_ranking(directory: Path, acts: dict[Key, np.ndarray], provenance: dict[str, Any], examples: int) -> None:
    """The tables `neurons` and `neuron_statistics`; of the latter all but positions, extremes and kurtosis is null."""
    ranked, statistics = [], []
    for (layer, expert, neuron), values in acts.items():
        for population in POPULATIONS:
            own = values.copy()
            if population == "without_first":
                own[:, 0] = np.nan
            place = {"population": population, "layer": layer, "expert": expert, "neuron": neuron}
            for side, sign in (("max", 1), ("min", -1)):
                best = []
                for sequence, along in enumerate(own):
                    there = [n for n in range(len(along)) if not np.isnan(along[n])]
                    if there:
                        token = max(there, key=lambda n: (sign * along[n], -n))
                        best.append((-sign * float(along[token]), sequence, token))
                for rank, (value, sequence, token) in enumerate(sorted(best)[:examples], start=1):
                    ranked.append(place | {"side": side, "rank": rank, "value": -sign * value, "sequence": sequence,
                                           "token": token})  # fmt: skip
            flat = own[~np.isnan(own)].astype(np.float64)
            off = flat - flat.mean() if flat.size else flat
            kurtosis = float((off**4).mean() / (off**2).mean() ** 2) if off.any() else None
            statistics.append(place | {"tokens": flat.size, "kurtosis": kurtosis,
                                       "min": flat.min() if flat.size else None,
                                       "max": flat.max() if flat.size else None})  # fmt: skip
    for table, rows in ((NEURONS, ranked), (NEURON_STATISTICS, statistics)):
        frame = pl.DataFrame([dict.fromkeys(table.schema) | row for row in rows], schema=table.schema, strict=False)
        write_table(directory / f"{table.name}.parquet", frame, table, provenance)
