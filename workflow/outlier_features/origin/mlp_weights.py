"""The weights of an MLP: which neurons feed a dim at a token, by how much, and how large the matrices are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from outlier_features.errors import InputError
from outlier_features.model.on_demand import require_weights
from outlier_features.model.sites import Site
from outlier_features.model.verify_sites import TOLERANCE

Array = np.ndarray[Any, Any]
SINGULAR_VALUES = 5


def weight_of(module: nn.Module) -> torch.Tensor:
    """A linear layer's weight as (outputs, inputs), whichever way the module keeps it."""
    require_weights(module)
    weight: Any = module.weight
    return (weight.T if isinstance(module, Conv1D) else weight).detach()


@dataclass(frozen=True)
class Feed:
    """What each neuron writes into one dim at one token, float64 (M,): `contribution = activation * weight`.

    bias    of the dim, 0 where the layer has none
    total   what the layer wrote there in the model's own pass
    """

    activation: Array
    weight: Array
    bias: float
    total: float

    @property
    def contribution(self) -> Array:
        return self.activation * self.weight


def feed(down: Site, neurons: torch.Tensor, written: torch.Tensor, dim: int) -> Feed:
    """The contributions to `dim` of the MLP's last linear layer.

    neurons   its input at the token (M,)
    written   its output at the token (H,)

    Raises `InputError` where contributions and bias do not sum to what was written, within a matrix product's rounding.
    """
    bias: Any = getattr(down.module, "bias", None)
    found = Feed(
        neurons.double().cpu().numpy(),
        weight_of(down.module)[dim].double().cpu().numpy(),
        0.0 if bias is None else float(bias[dim].detach()),
        float(written[dim]),
    )
    terms = found.contribution
    difference = abs(float(terms.sum()) + found.bias - found.total)
    if difference > TOLERANCE[written.dtype] * (float(np.abs(terms).sum()) + abs(found.bias)):
        raise InputError(
            f"sites: the contributions of the neurons of {down.path} to dim {dim} differ from its output by "
            f"{difference:.3g}, expected equality within rounding; set `trace_origin.dims: []` to trace nothing"
        )
    return found


def feed_rows(found: Feed) -> Iterator[dict[str, Any]]:
    """A row for each neuron, then one for the bias (neuron null); the shares sum to 1.

    `rank` is by `abs(contribution)`, `weights_only_rank` by `abs(weight)`, both from 1.
    """
    terms = found.contribution
    ranks, weight_ranks = _ranks(terms), _ranks(found.weight)
    for neuron in range(len(terms)):
        yield {
            "neuron": neuron,
            "activation": float(found.activation[neuron]),
            "weight": float(found.weight[neuron]),
            "contribution": float(terms[neuron]),
            "share": float(terms[neuron]) / found.total if found.total else None,
            "rank": int(ranks[neuron]),
            "weights_only_rank": int(weight_ranks[neuron]),
        }
    row = dict.fromkeys(("neuron", "activation", "weight", "rank", "weights_only_rank"))
    yield {**row, "contribution": found.bias, "share": found.bias / found.total if found.total else None}


def _ranks(values: Array) -> Array:
    ranks = np.empty(len(values), np.int64)
    ranks[np.argsort(-np.abs(values), kind="stable")] = np.arange(1, len(values) + 1)
    return ranks


@dataclass(frozen=True)
class Spectrum:
    """The largest singular values of a weight (k,); the share of each output dim in their left singular vectors (H, k),
    squares, so a column sums to 1; and of the largest both singular vectors, `written` (H,) and `read` (M,)."""

    values: Array
    dim_shares: Array
    written: Array
    read: Array


def spectrum(weight: torch.Tensor) -> Spectrum:
    """The leading part of the singular value decomposition of a weight (outputs, inputs).

    By the eigenvectors of `weight @ weight.T` in float64, which resolves the leading singular values to about eight
    digits and needs no decomposition of the longer side.
    """
    outputs = weight.shape[0]
    gram = torch.zeros(outputs, outputs, dtype=torch.float64)
    for columns in weight.split(4096, dim=1):
        exact = columns.cpu().double()
        gram += exact @ exact.T
    squares, vectors = torch.linalg.eigh(gram)
    leading = slice(None, -1 - min(SINGULAR_VALUES, outputs), -1)
    values = squares.clamp(min=0).sqrt().numpy()[leading]
    written = vectors[:, -1]
    read = torch.cat([columns.cpu().double().T @ written for columns in weight.split(4096, dim=1)])
    return Spectrum(
        values, np.square(vectors.numpy()[:, leading]), written.numpy(), (read / (float(values[0]) or 1.0)).numpy()
    )


def projection_row(
    found: Spectrum, neurons: torch.Tensor, written: torch.Tensor, position: int, dim: int
) -> dict[str, float | None]:
    """How much of what an MLP writes to `dim` goes by the first singular direction of its last linear layer.

    neurons   the layer's input at the positions of a sequence (T, M)
    written   its output there (T, H)

    `projection` is that of the neurons at `position` on the right singular vector, whose sign is such that it writes a
    positive value to the dim; `projection_share`, what it writes over the output there; `slope` and `r2`, of the line
    through the outputs to the dim at all positions by their projections, None where one of these does not vary.
    """
    sign = -1.0 if found.written[dim] < 0 else 1.0
    x = neurons.double().cpu().numpy() @ found.read * sign
    y = written[:, dim].double().cpu().numpy()
    off, away = x - x.mean(), y - y.mean()
    varies = bool(off.any() and away.any())
    slope = float(off @ away / (off @ off)) if varies else None
    by_it = float(found.values[0] * abs(found.written[dim]) * x[position])
    return {
        "projection": float(x[position]),
        "projection_share": by_it / float(y[position]) if y[position] else None,
        "slope": slope,
        "r2": None if slope is None else slope * float(off @ away / (away @ away)),
    }


def weight_row(site: Site) -> dict[str, Any]:
    """How large a linear layer's weights are, and where the largest is."""
    size = weight_of(site.module).cpu().float().abs()
    at = int(size.argmax())
    return {
        "weight": site.path,
        "outputs": size.shape[0],
        "inputs": size.shape[1],
        "max_abs": float(size.flatten()[at]),
        "max_output": at // size.shape[1],
        "max_input": at % size.shape[1],
        "mean_abs": float(size.mean(dtype=torch.float64)),
    }
