"""The tables of a store of neurons."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from outlier_features.files.table_writer import TableWriter
from outlier_features.files.tensorfile import TensorFile
from outlier_features.neurons.kept_neurons import BankShape, KeptNeurons, merged, split_places
from outlier_features.neurons.neurons_kernel import BINS, exponents_of
from outlier_features.neurons.neurons_schema import NEURON_STATISTICS, NEURONS
from outlier_features.neurons.position_classes import POPULATION_CLASSES

Array = np.ndarray[Any, Any]
_ROWS = 1 << 20  # that are made at a time


def write_neuron_tables(
    store: TensorFile, neurons: Path, statistics: Path, populations: Sequence[str], provenance: Mapping[str, Any]
) -> None:
    """Write NEURONS and NEURON_STATISTICS of a store, bank by bank, population by population."""
    with (
        TableWriter(neurons, NEURONS, provenance) as neuron_rows,
        TableWriter(statistics, NEURON_STATISTICS, provenance) as statistics_rows,
    ):
        for shape in BankShape.all_of(store.provenance):
            by_class = {number: KeptNeurons.read(store, shape.name, number) for number in POPULATION_CLASSES["all"]}
            length = max((kept.value.shape[2] for kept in by_class.values() if kept), default=0)
            for population in populations:
                parts = [kept for number in POPULATION_CLASSES[population] if (kept := by_class[number])]
                kept = merged(parts, shape, length)
                for frame in _neuron_rows(kept, shape):
                    neuron_rows.write(frame.with_columns(population=pl.lit(population)))
                statistics_rows.write(_statistics(kept, shape).with_columns(population=pl.lit(population)))


def _neuron_rows(kept: KeptNeurons, shape: BankShape) -> Iterator[pl.DataFrame]:
    _, neurons, examples = kept.value.shape
    step = max(_ROWS // max(2 * examples, 1), 1)
    for begin in range(0, neurons, step):
        rows = slice(begin, begin + step)
        place, value = (array[:, rows].transpose(1, 0, 2) for array in (kept.place, kept.value))
        neuron, side, rank = np.nonzero(place >= 0)
        sequence, token = split_places(place[neuron, side, rank])
        found = value[neuron, side, rank]
        yield pl.DataFrame(
            {
                **_names(neuron + begin, shape),
                "side": pl.Series(side, dtype=pl.UInt8).replace_strict([0, 1], ["max", "min"], return_dtype=pl.String),
                "rank": rank + 1,
                "value": np.where(side == 1, np.float32(0) - found, found),
                "sequence": sequence,
                "token": token,
            }
        )


def _names(rows: Array, shape: BankShape) -> dict[str, Any]:
    experts, neurons = np.divmod(rows, shape.neurons)
    return {
        "layer": np.full(len(rows), shape.layer),
        "expert": experts if shape.experts else pl.Series([None] * len(rows), dtype=pl.UInt16),
        "neuron": neurons,
    }


def _statistics(kept: KeptNeurons, shape: BankShape) -> pl.DataFrame:
    n = kept.counts
    mean, second, _, fourth = kept.moments
    with np.errstate(divide="ignore", invalid="ignore"):
        share, std, kurtosis = kept.active / n, np.sqrt(second / n), n * fourth / second**2
    exponents = exponents_of(kept.low, kept.high)
    width = np.ldexp(1.0, exponents)
    first, last = (np.where(n > 0, np.floor(end / width), 0).astype(np.int64) for end in (kept.low, kept.high))
    offsets = np.cumsum(np.append(0, np.where(n > 0, last - first + 1, 0)))
    neuron = np.repeat(np.arange(len(n)), np.diff(offsets))
    number = first[neuron] + np.arange(offsets[-1]) - offsets[neuron]
    counts = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(kept.histogram[neuron, number % BINS]))
    unless = pl.lit(pl.Series(n > 0))
    return pl.DataFrame(
        {
            **_names(np.arange(len(n)), shape),
            "tokens": n,
            "active_share": share,
            "mean": mean,
            "std": std,
            "kurtosis": pl.Series(kurtosis, nan_to_null=True),
            "min": kept.low,
            "max": kept.high,
            "histogram_low": first * width,
            "histogram_width": width,
            "histogram": pl.from_arrow(counts),
        }
    ).with_columns(pl.when(unless).then(pl.exclude("layer", "expert", "neuron", "tokens")))
