"""Rule quantize_sites: what rounding does to the input, the weight and the output of every linear layer."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import polars as pl
import torch

from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.channels.linear_layers import LinearInput, LinearLayer, Rows, find_linear_inputs
from outlier_features.dims.dims_schema import DIMS
from outlier_features.dims.dims_schema import MASSIVE as MASSIVE_TABLE
from outlier_features.extract.request import Sequences
from outlier_features.files.missing import require_had
from outlier_features.files.tables import write_table
from outlier_features.files.tensorfile import TensorFile
from outlier_features.model.forward_pass import run_blocks, sees_padding
from outlier_features.model.loading import Loading
from outlier_features.model.models import load_model
from outlier_features.model.sites import find_sites
from outlier_features.model.verify_sites import keep_proven, prove_sites
from outlier_features.populations import populations_of
from outlier_features.progress import item_bar
from outlier_features.quantize.input_errors import InputErrors, KeptRows, SequencePlaces, drawing_orders, of_population
from outlier_features.quantize.output_errors import INPUT, WEIGHT, LayerErrors, LayerOutputs, relative_error
from outlier_features.quantize.quantization_schema import QUANTIZATION, WEIGHT_OUTLIERS
from outlier_features.quantize.remedies import RunFindings, Treatment, treatments
from outlier_features.quantize.run_findings import massive_places, run_findings
from outlier_features.quantize.schemes import EXACT_BITS, SCHEMES, Scheme
from outlier_features.quantize.weight_outliers import outliers_of_weight
from outlier_features.tokens.tokens import Tokens

Array = np.ndarray[Any, Any]
Tensor = torch.Tensor


def quantize_sites(
    source: Path,
    tokens: Path,
    dims: Path,
    massive: Path,
    super_weights: Path,
    channel_stats: Path,
    quantization: Path,
    weight_outliers: Path,
    *,
    schemes: Sequence[str],
    remedied: Sequence[str],
    output_tokens: int,
    seeds: int,
    batch_size: int,
    **loading: Unpack[Loading],
) -> None:
    """Run the sequences once more and write `quantization`: the errors of the inputs of linear layers over all tokens,
    those of their weights, and of their outputs over `output_tokens` tokens beside all first and massive ones; and
    `weight_outliers`.

    channel_stats   the largest abs(x) of each channel, which static scales are made of
    schemes         names of `SCHEMES`; `remedied`: those of them that remedies are tried on

    The provenance has `quantize`: these settings, and by name the layers of which nothing is said, with the reason.

    Raises `InputError` where the files are of another run, or the statistics of channels could not be had.
    """
    run = Tokens.read(tokens)
    dim_rows, provenance = run.files.table(dims, DIMS)
    massive_rows = run.files.rows(massive, MASSIVE_TABLE)
    weight_rows, _ = run.files.table(super_weights, SUPER_WEIGHTS)
    channels = run.files.tensors(channel_stats)
    require_had(channels.provenance)
    model = run.files.model(source)
    loaded = load_model(Path(model["location"]), **loading)
    blocks = find_sites(loaded)
    keep_proven(blocks, prove_sites(loaded, blocks))
    found = find_linear_inputs(loaded, blocks)
    widths = {one.site: one.width for one in found.inputs if one.site}
    findings = run_findings(dim_rows, weight_rows, provenance["rules"], widths, seeds)
    asked = [SCHEMES[name] for name in schemes]
    errors = [
        _input_errors(one, channels, loaded.device, findings, asked, remedied, -(-output_tokens // len(run.tokens)))
        for one in found.inputs
        if one.layer is not None  # the head is left as it is
    ]
    places = _places(run, massive_places(massive_rows, run.tokens.shape))
    by_input = {one.one: one for one in errors}
    sequences = Sequences(run.tokens, run.mask)
    size = 1 if loaded.device.type == "cpu" else batch_size
    batches = sequences.batches(size, apart=sees_padding(loaded))
    for rows in item_bar(batches, "quantized inputs", "batch"):
        at = places[rows]

        def add(one: LinearInput, values: Rows, at: Sequence[SequencePlaces] = at) -> None:
            if one in by_input:
                by_input[one].add(values, at)

        with found.listening(add):
            run_blocks(loaded, *sequences.tensors(rows, loaded.device))
    populations = populations_of(run.parts)
    table: list[dict[str, Any]] = []
    outliers: list[pl.DataFrame] = []
    for one in item_bar(errors, "quantized outputs", "input"):
        if not one.kept:
            continue
        kept = KeptRows.joined(one.kept)
        for layer in one.one.layers:
            outputs = LayerOutputs(layer, one, kept)
            of_layer = outputs.errors()
            table += _rows(one, layer, of_layer, outputs.squares, kept, populations)
            outliers.append(outliers_of_weight(one.one, layer, one.absmax, findings))
        one.kept.clear()
    provenance |= {
        "quantize": {
            "schemes": list(schemes),
            "remedied": list(remedied),
            "output_tokens": output_tokens,
            "seeds": seeds,
            "absent": dict(found.absent),
        }
    }
    frame = pl.DataFrame(table, schema=QUANTIZATION.schema, infer_schema_length=None)
    write_table(quantization, _with_best(frame), QUANTIZATION, provenance)
    write_table(weight_outliers, pl.concat(outliers), WEIGHT_OUTLIERS, provenance)


def _input_errors(
    one: LinearInput,
    channels: TensorFile,
    device: torch.device,
    findings: RunFindings,
    asked: Sequence[Scheme],
    remedied: Sequence[str],
    keep: int,
) -> InputErrors:
    absmax = torch.from_numpy(channels.array(f"{one.name}.absmax").astype(np.float32)).to(device)
    absmax = absmax.amax(0) if absmax.ndim > 1 else absmax

    @cache
    def heaviest() -> Tensor:
        every = [layer.matrix(n).abs().amax(0) for layer in one.layers for n in _experts(layer)]
        return torch.stack(every).amax(0)

    tried = list(treatments(one, absmax, heaviest, findings))
    return InputErrors(one, tried, asked, [s for s in asked if s.name in remedied], absmax, keep)


def _experts(layer: LinearLayer) -> Sequence[int | None]:
    return range(layer.experts) if layer.experts else (None,)


def _places(run: Tokens, massive: Array) -> list[SequencePlaces]:
    orders = drawing_orders(*run.tokens.shape)
    return [SequencePlaces(*one) for one in zip(run.parts, massive, orders, strict=True)]


def _rows(
    errors: InputErrors,
    layer: LinearLayer,
    of_layer: Sequence[LayerErrors],
    squares: Array,
    kept: KeptRows,
    populations: Sequence[str],
) -> Iterator[dict[str, Any]]:
    one = errors.one
    for found in of_layer:
        treatment, scheme = errors.treatments[found.treatment], found.scheme
        for quantized, by_row in found.by_row.items():
            for population in populations:
                error, deviation, number = relative_error(by_row, squares, kept, population)
                if quantized == INPUT:
                    noise = errors.noise[found.treatment, scheme.name]
                    sqnr = _decibels(
                        of_population(errors.signal[found.treatment], population), of_population(noise, population)
                    )
                else:
                    sqnr = _decibels(found.weight_signal, found.weight_noise) if quantized == WEIGHT else None
                row = {
                    "layer": one.layer,
                    "site": one.site,
                    "module": layer.name,
                    "remedy": treatment.remedy,
                    "setting": treatment.setting,
                    "quantized": quantized,
                    "population": population,
                    "sqnr_db": sqnr,
                    "output_error": error,
                    "output_error_sd": deviation,
                    "tokens": int(of_population(errors.tokens, population)),
                    "output_tokens": number,
                    "bits": _bits(errors, layer, treatment, scheme, quantized, population),
                }
                yield from ({**row, "scheme": name} for name in errors.names_of(treatment, scheme))


def _decibels(signal: float, noise: float) -> float | None:
    return float(10 * np.log10(signal / noise)) if signal > 0 and noise > 0 else None


def _bits(
    errors: InputErrors, layer: LinearLayer, treatment: Treatment, scheme: Scheme, quantized: str, population: str
) -> float:
    width = layer.width
    if quantized == INPUT:
        tokens, exact = (int(of_population(sums, population)) for sums in (errors.tokens, errors.exact))
        share = treatment.exact_share(exact / tokens if tokens else 0.0)
        return scheme.mean_bits(width, share, rows=tokens)
    places = len(treatment.weights.get(layer.name, ()))
    share = treatment.exact_share(0.0) + places / (layer.rows * width)
    of_weight = scheme.weight.mean_bits(width) + share * (EXACT_BITS - scheme.weight.bits)
    if quantized == WEIGHT:
        return of_weight
    of_input = _bits(errors, layer, treatment, scheme, INPUT, population)
    return (of_weight + of_input) / 2


def _with_best(frame: pl.DataFrame) -> pl.DataFrame:
    """With `best`: of the settings that a remedy is tried with, the one of the smallest error of the output."""
    alike = ["module", "scheme", "remedy", "quantized", "population"]
    best = pl.col("output_error").eq(pl.col("output_error").min().over(alike))
    chosen = pl.col("remedy").is_in(["smooth", "clip"])
    return frame.with_columns(best=pl.when(chosen).then(best))
