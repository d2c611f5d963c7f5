"""Rule quantize_dump: what rounding does to the tensors of a dump that linear layers read; weights are not there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.channels.linear_layers import LinearLayer, Rows
from outlier_features.dims.dims_schema import DIMS
from outlier_features.dims.dims_schema import MASSIVE as MASSIVE_TABLE
from outlier_features.dump.dumps import DumpRange
from outlier_features.errors import InputError
from outlier_features.extract.activations import Activations
from outlier_features.files.tables import write_table
from outlier_features.populations import populations_of
from outlier_features.progress import item_bar
from outlier_features.quantize.input_errors import InputErrors, sequence_places
from outlier_features.quantize.quantization_rows import Row, quantization_table, rows_of_input
from outlier_features.quantize.quantization_schema import QUANTIZATION
from outlier_features.quantize.remedies import treatments
from outlier_features.quantize.run_findings import exact_tokens, run_findings
from outlier_features.quantize.schemes import SCHEMES
from outlier_features.scan.site_tensors import SiteTensors
from outlier_features.tokens.tokens import Tokens

READ_BY_LAYERS = ("attn_norm", "mixer_norm", "mlp_norm", "attn_heads", "mlp_act")


@dataclass(frozen=True)
class DumpedInput:
    """A site's tensor in a layer, which linear layers read."""

    layer: int
    site: str
    width: int
    layers: tuple[LinearLayer, ...] = ()


def quantize_dump(
    tokens: Path,
    dims: Path,
    massive: Path,
    dump: DumpRange,
    quantization: Path,
    *,
    schemes: Sequence[str],
    remedied: Sequence[str],
    seeds: int,
) -> None:
    """Write `quantization`, with rows of inputs alone: for each of the dump's sites that linear layers read, and layer.

    The arguments are those of `quantize_sites`; what needs a weight (smoothing, super weights) is not tried. The values
    are read twice, since static scales are made of all of them.

    Raises `InputError` where the dump has no such site, or its files are of another run.
    """
    run = Tokens.read(tokens)
    dim_rows, provenance = run.files.table(dims, DIMS)
    sites = {site: tensors for site, tensors in Activations.open(dump, run).sites.items() if site in READ_BY_LAYERS}
    if not sites:
        raise InputError(f"sites: found none of {', '.join(READ_BY_LAYERS)} in the dump, which linear layers read")
    widths = {site: tensors.dims for site, tensors in sites.items()}
    no_weights = pl.DataFrame(schema=SUPER_WEIGHTS.schema)
    exact, said = exact_tokens(run, run.files.rows(massive, MASSIVE_TABLE))
    findings = run_findings(dim_rows, no_weights, provenance["rules"], widths, seeds, said)
    asked = [SCHEMES[name] for name in schemes]
    places = sequence_places(run, exact)
    populations, rows = populations_of(run.parts), list[Row]()
    every = [(site, index) for site, tensors in sites.items() for index in range(len(tensors.layers))]
    for site, index in item_bar(every, "quantized sites", "tensor"):
        tensors = sites[site]
        one = DumpedInput(int(tensors.layers[index]), site, tensors.dims)
        absmax = _largest(tensors, index)
        tried = list(treatments(one, absmax, None, findings))
        errors = InputErrors(one, tried, asked, [s for s in asked if s.name in remedied], absmax)
        for sequence, place in enumerate(places):
            values = torch.from_numpy(tensors.sequence(index, sequence).astype(np.float32))
            errors.add(Rows(values, torch.arange(len(values))), [place])
        rows += rows_of_input(errors, populations)
    settings: dict[str, Any] = {"schemes": list(schemes), "remedied": list(remedied), "seeds": seeds}
    settings |= {"output_tokens": None, "absent": {}}
    write_table(quantization, quantization_table(rows), QUANTIZATION, provenance | {"quantize": settings})


def _largest(tensors: SiteTensors, index: int) -> torch.Tensor:
    """Largest abs(x) of each channel, (width,)."""
    found = np.zeros(tensors.dims, np.float32)
    for sequence in range(len(tensors.lengths)):
        np.maximum(found, np.abs(tensors.sequence(index, sequence)).max(axis=0, initial=0), out=found)
    return torch.from_numpy(found)
