"""The rows of the table `quantization`, from the errors of an input and of the layers that read it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from outlier_features.channels.linear_layers import LinearLayer
from outlier_features.files.quantization_columns import INPUT, WEIGHT
from outlier_features.quantize.input_errors import InputErrors, KeptRows, of_population
from outlier_features.quantize.output_errors import LayerErrors, SampledOutputs
from outlier_features.quantize.quantization_schema import QUANTIZATION
from outlier_features.quantize.remedies import Treatment
from outlier_features.quantize.schemes import EXACT_BITS, Scheme

Array = np.ndarray[Any, Any]
Row = dict[str, Any]


def rows_of_input(errors: InputErrors, populations: Sequence[str]) -> Iterator[Row]:
    """Of an input whose layers are not known."""
    for index, treatment in enumerate(errors.treatments):
        for scheme in errors.schemes_of(index) if treatment.changes_input else ():
            for population in populations:
                row = {
                    "sqnr_db": _of_input(errors, index, scheme, population),
                    "bits": _bits_of_input(errors, treatment, scheme, population),
                }
                yield from _named(errors, index, scheme, INPUT, population, row)


def rows_of_layer(
    errors: InputErrors,
    layer: LinearLayer,
    found: Sequence[LayerErrors],
    squares: Array,
    kept: KeptRows,
    populations: Sequence[str],
) -> Iterator[Row]:
    """squares   of the layer's exact outputs, see `LayerOutputs`"""
    outputs = {population: SampledOutputs(squares, kept, population) for population in populations}
    for one in found:
        treatment, scheme = errors.treatments[one.treatment], one.scheme
        of_weight = _decibels(one.weight_signal, one.weight_noise)
        for quantized, by_row in one.by_row.items():
            for population in populations:
                error, deviation = outputs[population].relative_error(by_row)
                number = outputs[population].tokens
                of_input = _of_input(errors, one.treatment, scheme, population) if quantized == INPUT else None
                bits = [
                    _bits_of_input(errors, treatment, scheme, population),
                    _bits_of_weight(layer, treatment, scheme),
                ]
                row = {
                    "module": layer.name,
                    "sqnr_db": of_weight if quantized == WEIGHT else of_input,
                    "output_error": error,
                    "output_error_sd": deviation,
                    **({} if one.treatment == 0 or quantized != INPUT else {"tokens": number}),
                    "output_tokens": number,
                    "bits": sum(bits) / 2 if quantized not in (INPUT, WEIGHT) else bits[quantized == WEIGHT],
                }
                yield from _named(errors, one.treatment, scheme, quantized, population, row)


def quantization_table(rows: Sequence[Row]) -> pl.DataFrame:
    """With `best`: of the settings that a remedy is tried with, the one of the smallest error of the output."""
    frame = pl.DataFrame(rows, schema=QUANTIZATION.schema, infer_schema_length=None)
    alike = ["module", "scheme", "remedy", "quantized", "population"]
    best = pl.col("output_error").eq(pl.col("output_error").min().over(alike))
    return frame.with_columns(best=pl.when(pl.col("remedy").is_in(["smooth", "clip"])).then(best))


def _named(
    errors: InputErrors, treatment: int, scheme: Scheme, quantized: str, population: str, row: Row
) -> Iterator[Row]:
    """The row under each name of the scheme."""
    shared = {
        "layer": errors.one.layer,
        "site": errors.one.site,
        "remedy": errors.treatments[treatment].remedy,
        "setting": errors.treatments[treatment].setting,
        "quantized": quantized,
        "population": population,
        "tokens": int(of_population(errors.tokens, population)),
    }
    yield from ({**shared, **row, "scheme": name} for name in errors.names_of(treatment, scheme))


def _of_input(errors: InputErrors, treatment: int, scheme: Scheme, population: str) -> float | None:
    signal, noise = errors.signal[treatment], errors.noise[treatment, scheme.name]
    return _decibels(of_population(signal, population), of_population(noise, population))


def _decibels(signal: float, noise: float) -> float | None:
    return float(10 * np.log10(signal / noise)) if signal > 0 and noise > 0 else None


def _bits_of_input(errors: InputErrors, treatment: Treatment, scheme: Scheme, population: str) -> float:
    tokens, exact = (int(of_population(sums, population)) for sums in (errors.tokens, errors.exact))
    share = treatment.exact_share(exact / tokens if tokens else 0.0)
    return scheme.mean_bits(errors.one.width, share, rows=tokens)


def _bits_of_weight(layer: LinearLayer, treatment: Treatment, scheme: Scheme) -> float:
    places = len(treatment.weights.get(layer.name, ()))
    share = treatment.exact_share(0.0) + places / (layer.rows * layer.width)
    return scheme.weight.mean_bits(layer.width) + share * (EXACT_BITS - scheme.weight.bits)
