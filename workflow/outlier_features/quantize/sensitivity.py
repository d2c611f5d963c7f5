"""Which inputs of linear layers to leave in 16 bits: what each costs alone, and how well cheap signals foretell it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from outlier_features.channels.linear_layers import LinearInput
from outlier_features.files.quantization_columns import BOTH, NONE
from outlier_features.quantize.loss_schema import QUANTIZATION_SENSITIVITY, QUANTIZATION_SIGNALS
from outlier_features.quantize.loss_variants import kept_numbers

Array = np.ndarray[Any, Any]
COSTS = ("nll_change", "kl")  # of an input alone
SIGNALS = ("output_error", "kurtosis", "kurtosis_channel_rms", "absmax_over_median", "channel_spread")
RANDOM = "random"


def sensitivity(
    inputs: Sequence[LinearInput],
    alone: pl.DataFrame,
    channels: Mapping[str, Mapping[str, Array]],
    layers: pl.DataFrame,
    quantization: pl.DataFrame,
    scheme: str,
) -> pl.DataFrame:
    """A row for each input: columns of `QUANTIZATION_SENSITIVITY`, and `module`, a list of the layers that read it.

    alone          of each input in turn, `nll_change` and `kl` where nothing else is quantized
    channels       by input's name, of each channel `absmax` and `mean_square` (width,)
    layers         the run's table
    quantization   the run's table, without rows where it is missing
    """
    own = pl.col("scheme").eq(scheme) & pl.col("remedy").eq(NONE) & pl.col("quantized").eq(BOTH)
    errors = dict(quantization.filter(own, population="all").select("module", "output_error").iter_rows())
    flat = {
        (site, layer): value
        for site, layer, value in layers.filter(population="all")
        .select("site", "layer", "kurtosis_flat_excess")
        .iter_rows()
    }
    rows: list[dict[str, Any]] = []
    for one, costs in zip(inputs, alone.select(COSTS).iter_rows(named=True), strict=True):
        known = [errors[layer.name] for layer in one.layers if errors.get(layer.name) is not None]
        rows.append(
            {
                "layer": one.layer,
                "site": one.site,
                "module": [layer.name for layer in one.layers],
                "reads": one.name,
                **costs,
                "output_error": sum(known) / len(known) if known else None,
                "kurtosis": flat.get((one.site or "", one.layer or 0)),
                **_of_channels(**channels[one.name]),
            }
        )
    own_types = QUANTIZATION_SENSITIVITY.schema | {"module": pl.List(pl.String)}
    frame = pl.DataFrame(rows, schema={name: kind for name, kind in own_types.items() if name in rows[0]})
    ranks = {f"rank_{name}": pl.col(name).rank("ordinal", descending=True) for name in (*COSTS, *SIGNALS)}
    return frame.with_columns(**ranks)


def _of_channels(absmax: Array, mean_square: Array) -> dict[str, float | None]:
    median, mean, largest = float(np.median(absmax)), float(absmax.mean(dtype=np.float64)), float(absmax.max())
    square = float(mean_square.mean())
    return {
        "kurtosis_channel_rms": float((mean_square**2).mean()) / square**2 if square else None,
        "absmax_over_median": largest / median if median else None,
        "channel_spread": largest / mean if mean else None,
    }


def orders_of(rows: pl.DataFrame) -> dict[str, Sequence[int]]:
    """By what inputs are kept in 16 bits, which first: what is known of every input, and a random order beside."""
    orders: dict[str, Sequence[int]] = {}
    for name in (*COSTS, *SIGNALS):
        if not rows[name].null_count():
            orders[name] = np.argsort(rows[f"rank_{name}"].to_numpy(), kind="stable").tolist()
    return orders | {RANDOM: np.random.default_rng(0).permutation(len(rows)).tolist()}


def fewest_kept(order: str, losses: pl.DataFrame, inputs: int, budget: float) -> int:
    """Fewest inputs, of the numbers that were tried, that are kept so that perplexity is at most `1 + budget` times
    that of the unchanged model.

    losses   rows of `QUANTIZATION_LOSS` of the unchanged model, of all inputs quantized and of the curves
    """
    most = np.log1p(budget)
    for kept in [0, *kept_numbers(inputs)]:
        (change,) = losses.filter(what=f"kept:{order}:{kept}" if kept else "all")["nll_change"]
        if change is not None and change <= most:
            return kept
    return inputs


def sensitivity_rows(rows: pl.DataFrame, losses: pl.DataFrame, budget: float) -> pl.DataFrame:
    """Those of `QUANTIZATION_SENSITIVITY`, from those of inputs.

    Kept are those of the largest `kl`: on a sample, the loss of one input alone is as often smaller as larger.
    """
    kept = fewest_kept("kl", losses, len(rows), budget)
    return QUANTIZATION_SENSITIVITY.cast(rows.with_columns(kept=pl.col("rank_kl") <= kept).explode("module"))


def signal_rows(
    rows: pl.DataFrame, orders: Mapping[str, Sequence[int]], losses: pl.DataFrame, budget: float
) -> pl.DataFrame:
    """The rows of `QUANTIZATION_SIGNALS`, from those of inputs."""
    found: list[dict[str, Any]] = []
    for name in (*COSTS, *SIGNALS, RANDOM):
        values = rows[name] if name != RANDOM else -pl.Series(np.argsort(orders[RANDOM])).cast(pl.Float64)
        known = rows.select(*COSTS, signal=values).drop_nulls()
        found.append(
            {
                "order": name,
                "inputs": len(rows) - values.null_count(),
                "spearman": _spearman(known["signal"], known["nll_change"]),
                "spearman_kl": _spearman(known["signal"], known["kl"]),
                "kept": fewest_kept(name, losses, len(rows), budget) if name in orders else None,
            }
        )
    return pl.DataFrame(found, schema=QUANTIZATION_SIGNALS.schema)


def _spearman(left: pl.Series, right: pl.Series) -> float | None:
    """None of fewer than three, and where all are equal."""
    if len(left) < 3 or left.n_unique() < 2 or right.n_unique() < 2:
        return None
    found = pl.select(pl.corr(left.rank(), right.rank())).item()
    return float(found)
