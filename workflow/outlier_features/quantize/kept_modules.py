"""Which linear layers are best left in 16 bits, by the best that a run knows of it."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from outlier_features.files.missing import MISSING
from outlier_features.files.run_files import RunFiles
from outlier_features.files.tables import public_tables
from outlier_features.quantize.quantization_schema import QUANTIZATION

MOST_ERROR = 0.1  # of a layer's output, ||Q(X) Q(W) - X W|| / ||X W||: beyond, it is left as it is


@dataclass(frozen=True)
class KeptModules:
    """The head is left as it is, whatever is known.

    modules   in the order of the table that names them
    why       one sentence: by what they were chosen
    """

    modules: tuple[str, ...]
    why: str


def kept_modules(files: RunFiles, sensitivity: Path | None, quantization: Path | None, scheme: str) -> KeptModules:
    """Those that `sensitivity` keeps under its budget; without it, those whose output `quantization` finds too wrong.

    scheme   by which losses and errors were measured
    """
    if sensitivity is not None:
        rows, provenance = files.table(sensitivity, public_tables()["quantization_sensitivity"])
        if MISSING not in provenance:
            kept = tuple(rows.filter("kept")["module"].unique(maintain_order=True))
            return KeptModules(kept, f"left in 16 bits so that the loss by {scheme} stays within quantize.budget")
    if quantization is not None:
        rows, provenance = files.table(quantization, QUANTIZATION)
        found = rows.filter(scheme=scheme, remedy="none", quantized="xw", population="all")
        if MISSING not in provenance and len(found):
            wrong = found.filter(pl.col("output_error") > MOST_ERROR)
            why = f"output error by {scheme} above {MOST_ERROR:g}; quantize.losses would tell by the loss"
            return KeptModules(tuple(wrong["module"].unique(maintain_order=True)), why)
    return KeptModules((), "neither losses nor errors were measured: nothing but the head is left as it is")
