"""Columns and rows of a weight that stand out, beside the dims that stand out in what it reads."""

from typing import Any

import numpy as np
import polars as pl
import torch

from outlier_features.channels.linear_layers import LinearLayer
from outlier_features.quantize.quantization_schema import WEIGHT_OUTLIERS
from outlier_features.quantize.remedies import Read, RunFindings

Array = np.ndarray[Any, Any]
MOST = 5  # dims of each kind that have a row


@torch.inference_mode()
def outliers_of_weight(one: Read, layer: LinearLayer, absmax: torch.Tensor, found: RunFindings) -> pl.DataFrame:
    """The rows of `WEIGHT_OUTLIERS` of a layer; of experts, each dim's largest over all of them.

    absmax   largest abs(x) of each channel of its input, (width,)
    """
    columns = torch.zeros(layer.width)
    outputs = torch.zeros(layer.rows)
    for expert in range(layer.experts) if layer.experts else (None,):
        matrix = layer.matrix(expert).abs().cpu()
        columns = torch.maximum(columns, matrix.amax(0))
        outputs = torch.maximum(outputs, matrix.amax(1))
    selected = set(found.dims.get(one.site or "", ((), ""))[0])
    frames = []
    for axis, weights, activations in (("in", columns, absmax.cpu()), ("out", outputs, None)):
        ratio, rank = _standing_out(weights.double().numpy())
        frame = {"dim": np.arange(len(ratio)), "max_abs": weights.double().numpy(), "ratio": ratio, "rank": rank}
        wanted = rank <= MOST
        if activations is not None:
            of_input, its_rank = _standing_out(activations.double().numpy())
            frame |= {
                "activation_max_abs": activations.double().numpy(),
                "activation_ratio": of_input,
                "activation_rank": its_rank,
            }
            wanted |= its_rank <= MOST
            wanted[sorted(selected)] = True
        rows = pl.DataFrame(frame).filter(pl.Series(wanted))
        frames.append(
            rows.with_columns(axis=pl.lit(axis), selected=pl.col("dim").is_in(sorted(selected)) & (axis == "in"))
        )
    return (
        pl.concat(frames, how="diagonal")
        .with_columns(layer=pl.lit(one.layer), site=pl.lit(one.site), module=pl.lit(layer.name))
        .pipe(WEIGHT_OUTLIERS.cast)
    )


def _standing_out(largest: Array) -> tuple[Array, Array]:
    """Over the mean of all, and the rank of that from 1."""
    mean = largest.mean()
    ratio = largest / mean if mean else np.zeros_like(largest)
    rank = np.empty(len(largest), np.int64)
    rank[np.argsort(-ratio, kind="stable")] = np.arange(1, len(largest) + 1)
    return ratio, rank
