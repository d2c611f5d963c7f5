"""Rule quantize_model: what the model loses when its linear layers are rounded, all, some, and behind a prefix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import polars as pl
import torch

from outlier_features.ablate.subject import Subject
from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.channels.prefix_schema import PREFIX_TOKENS
from outlier_features.detect.layers_schema import LAYERS
from outlier_features.dims.dims_schema import DIMS
from outlier_features.dims.dims_schema import MASSIVE as MASSIVE_TABLE
from outlier_features.errors import InputError
from outlier_features.files.missing import require_had
from outlier_features.files.quantization_columns import BOTH, NONE
from outlier_features.files.run_files import RunFiles
from outlier_features.files.tables import write_table
from outlier_features.model.loading import Loading
from outlier_features.model.verify_sites import keep_proven, prove_sites
from outlier_features.quantize.known_inputs import known_inputs
from outlier_features.quantize.loss_schema import (
    PREFIX_TRIAL,
    QUANTIZATION_LOSS,
    QUANTIZATION_LOSS_SEQUENCES,
    QUANTIZATION_SENSITIVITY,
    QUANTIZATION_SIGNALS,
)
from outlier_features.quantize.loss_variants import Measured, kept_variants, part_variants, whole_variants
from outlier_features.quantize.prefix_trial import PrefixPasses, try_prefix
from outlier_features.quantize.quantization_schema import QUANTIZATION
from outlier_features.quantize.quantizing_passes import Quantized, QuantizingPasses
from outlier_features.quantize.run_findings import exact_tokens, run_findings
from outlier_features.quantize.sensitivity import orders_of, sensitivity, sensitivity_rows, signal_rows
from outlier_features.tokens.tokens import Tokens

Array = np.ndarray[Any, Any]


def quantize_model(
    source: Path,
    tokens: Path,
    dims: Path,
    massive: Path,
    super_weights: Path,
    layers: Path,
    channel_stats: Path,
    prefix_tokens: Path,
    quantization: Path,
    *,
    quantization_loss: Path,
    quantization_loss_sequences: Path,
    quantization_sensitivity: Path,
    quantization_signals: Path,
    prefix_trial: Path,
    schemes: Sequence[str],
    remedied: Sequence[str],
    loss_scheme: str,
    budget: float,
    seeds: int,
    sequences: int,
    length: int,
    batch_size: int,
    **loading: Unpack[Loading],
) -> None:
    """Run the first `length` tokens of the run's first `sequences` sequences, with linear layers of the blocks rounded
    in many ways, and write a table of the losses, the same by sequence, one of what each input costs alone under
    `loss_scheme`, one of the orders in which they were kept in 16 bits, and one of the trial of the run's prefix.

    channel_stats   what static scales, smoothing and cheap signals are made of
    budget          relative rise of perplexity that is allowed to what is not kept

    The provenance has `quantize_model`: sample, schemes, and by name the layers that were left as they are.

    Raises `InputError` where the files are of another run, or the model does not predict the next token.
    """
    run = Tokens.read(tokens)
    dim_rows, provenance = run.files.table(dims, DIMS)
    if provenance["no_loss"]:
        raise InputError(provenance["no_loss"])
    massive_rows = run.files.rows(massive, MASSIVE_TABLE)
    weight_rows = run.files.rows(super_weights, SUPER_WEIGHTS)
    layer_rows = run.files.rows(layers, LAYERS)
    errors = run.files.rows(quantization, QUANTIZATION)
    file = run.files.tensors(channel_stats)
    require_had(file.provenance)
    prefix = _prefix_ids(run.files, prefix_tokens)
    run.files.model(source)
    subject = Subject.fetched(source, **loading)
    keep_proven(subject.blocks, prove_sites(subject.loaded, subject.blocks))
    known = known_inputs(subject.loaded, subject.blocks, file)
    inputs = known.inputs
    channels = {one.name: {"absmax": known.absmax(one), "mean_square": known.mean_square(one)} for one in inputs}
    widths = {one.site: one.width for one in inputs if one.site}
    exact, said = exact_tokens(run, massive_rows)
    findings = run_findings(dim_rows, weight_rows, provenance["rules"], widths, seeds, said)
    sample = run.head(sequences, length)
    given: dict[str, Any] = {
        "inputs": inputs,
        "absmax": {one.name: torch.from_numpy(known.absmax(one)) for one in inputs},
        "found": findings,
        "exact": exact[:sequences, :length],
    }
    passes = QuantizingPasses(subject, sample, batch_size, **given)
    whole = list(whole_variants(inputs, findings, schemes, remedied))
    every = Quantized(tuple(range(len(inputs))), loss_scheme, BOTH, NONE)
    if every not in whole:
        whole.append(every)
    measured = Measured.by(passes, [Quantized(), *whole, *part_variants(inputs, loss_scheme)])
    alone = measured.scores().tail(len(inputs))
    sensitivities = sensitivity(inputs, alone, channels, layer_rows, errors, loss_scheme)
    orders = orders_of(sensitivities)
    measured += Measured.by(passes, [Quantized(), *kept_variants(orders, loss_scheme)])
    losses = measured.rows(inputs, findings)
    of_scheme = losses.filter(scheme=loss_scheme, remedy=NONE, quantized=BOTH)
    provenance |= {
        "quantize_model": {
            "sequences": len(sample.tokens),
            "tokens": sample.tokens.shape[1],
            "schemes": list(schemes),
            "remedied": list(remedied),
            "loss_scheme": loss_scheme,
            "budget": budget,
            "seeds": seeds,
            "absent": known.absent,
            "prefix": prefix,
        }
    }
    write_table(quantization_loss, losses, QUANTIZATION_LOSS, provenance)
    write_table(quantization_loss_sequences, measured.by_sequence, QUANTIZATION_LOSS_SEQUENCES, provenance)
    write_table(
        quantization_sensitivity,
        sensitivity_rows(sensitivities, of_scheme, budget),
        QUANTIZATION_SENSITIVITY,
        provenance,
    )
    write_table(
        quantization_signals, signal_rows(sensitivities, orders, of_scheme, budget), QUANTIZATION_SIGNALS, provenance
    )
    trial = pl.DataFrame(schema=PREFIX_TRIAL.schema)
    if prefix:
        most = getattr(subject.loaded.config, "max_position_embeddings", None)
        trial = try_prefix(PrefixPasses(subject, sample, batch_size, **given), sample, prefix, loss_scheme, most)
    write_table(prefix_trial, trial, PREFIX_TRIAL, provenance)


def _prefix_ids(files: RunFiles, path: Path) -> list[int]:
    """Token ids, in their order; none where they could not be had."""
    rows = files.rows(path, PREFIX_TOKENS).filter("chosen").sort("prefix_position")
    ids: list[int] = rows["token_id"].to_list()
    return ids
