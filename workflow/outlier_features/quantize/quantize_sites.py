"""Rule quantize_sites: what rounding does to the input, the weight and the output of every linear layer."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import polars as pl
import torch

from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.channels.linear_layers import LinearInput, LinearLayer, Rows
from outlier_features.dims.dims_schema import DIMS
from outlier_features.dims.dims_schema import MASSIVE as MASSIVE_TABLE
from outlier_features.extract.block_by_block import Batch, BlockByBlock, Listening, place_beside
from outlier_features.extract.request import Sequences
from outlier_features.files.missing import require_had
from outlier_features.files.tables import write_table
from outlier_features.model.forward_pass import run_blocks, sees_padding
from outlier_features.model.loading import Loading
from outlier_features.model.models import LoadedModel, load_model
from outlier_features.model.prefixes import Prefixes
from outlier_features.model.sites import find_sites
from outlier_features.model.verify_sites import keep_proven, prove_sites
from outlier_features.populations import populations_of
from outlier_features.progress import item_bar
from outlier_features.quantize.input_errors import InputErrors, KeptRows, sequence_places
from outlier_features.quantize.known_inputs import KnownInputs, known_inputs
from outlier_features.quantize.output_errors import LayerOutputs
from outlier_features.quantize.quantization_rows import Row, quantization_table, rows_of_layer
from outlier_features.quantize.quantization_schema import QUANTIZATION, WEIGHT_OUTLIERS
from outlier_features.quantize.remedies import RunFindings, treatments
from outlier_features.quantize.run_findings import exact_tokens, run_findings
from outlier_features.quantize.schemes import SCHEMES, Scheme
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
    those of their weights, and of their outputs over `output_tokens` tokens beside first and massive ones; and
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
    known = known_inputs(loaded, blocks, channels)
    widths = {one.site: one.width for one in known.inputs if one.site}
    exact, said = exact_tokens(run, massive_rows)
    findings = run_findings(dim_rows, weight_rows, provenance["rules"], widths, seeds, said)
    asked = [SCHEMES[name] for name in schemes]
    errors = [
        _input_errors(one, known, loaded.device, findings, asked, remedied, -(-output_tokens // len(run.tokens)))
        for one in known.inputs
    ]
    places = sequence_places(run, exact)
    by_input = {one.one: one for one in errors}

    def listening(batch: Batch) -> AbstractContextManager[None]:
        at = places[batch.rows]

        def add(one: LinearInput, values: Rows) -> None:
            if one in by_input:
                by_input[one].add(values, at)

        return known.listed.listening(add)

    _run(loaded, run, batch_size, listening, place_beside(quantization))
    populations = populations_of(run.parts)
    table: list[Row] = []
    outliers: list[pl.DataFrame] = []
    for one in item_bar(errors, "quantized outputs", "input"):
        if not one.kept:
            continue
        kept = KeptRows.joined(one.kept)
        one.add_remedies(kept)
        for layer in one.one.layers:
            outputs = LayerOutputs(layer, one, kept)
            of_layer = outputs.errors()
            table += rows_of_layer(one, layer, of_layer, outputs.squares, kept, populations)
            outliers.append(outliers_of_weight(one.one, layer, one.absmax, findings))
        one.kept.clear()
    provenance |= {
        "quantize": {
            "schemes": list(schemes),
            "remedied": list(remedied),
            "output_tokens": output_tokens,
            "seeds": seeds,
            "absent": dict(known.absent),
        }
    }
    write_table(quantization, quantization_table(table), QUANTIZATION, provenance)
    write_table(weight_outliers, pl.concat(outliers), WEIGHT_OUTLIERS, provenance)


def _run(loaded: LoadedModel, run: Tokens, batch_size: int, listening: Listening, place: Path) -> None:
    """Run all sequences, block by block where weights stay on disk, so that these are read once.

    place   where hidden states then lie
    """
    sequences = Sequences(run.tokens, run.mask)
    size = 1 if loaded.device.type == "cpu" else batch_size
    rows = sequences.batches(size, apart=sees_padding(loaded))
    batches = [Batch(own, *sequences.tensors(own, loaded.device)) for own in rows]
    prefixes = Prefixes(loaded)
    if loaded.placement.kind == "layerwise" and not prefixes.no_steps():
        passes = BlockByBlock(loaded, prefixes, batches, place, {})
        passes.remove()  # what a killed job left: the sums of its blocks are lost
        passes.run({}, {}, lambda name, value, batch: None, None, listening=listening, beside={})
        passes.remove()
        return
    for batch in item_bar(batches, "quantized inputs", "batch"):
        with listening(batch):
            run_blocks(loaded, batch.ids, batch.mask)


def _input_errors(
    one: LinearInput,
    known: KnownInputs,
    device: torch.device,
    findings: RunFindings,
    asked: Sequence[Scheme],
    remedied: Sequence[str],
    keep: int,
) -> InputErrors:
    absmax = torch.from_numpy(known.absmax(one)).to(device)

    @cache
    def heaviest() -> Tensor:
        every = [layer.matrix(n).abs().amax(0) for layer in one.layers for n in _experts(layer)]
        return torch.stack(every).amax(0)

    tried = list(treatments(one, absmax, heaviest, findings))
    return InputErrors(one, tried, asked, [s for s in asked if s.name in remedied], absmax, keep)


def _experts(layer: LinearLayer) -> Sequence[int | None]:
    return range(layer.experts) if layer.experts else (None,)
