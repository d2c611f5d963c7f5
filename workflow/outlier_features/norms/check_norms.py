"""Rule check_norms: the gains of a model's norms, and what they are at the selected dims."""

from pathlib import Path

import torch

from outlier_features.dims.dims_schema import DIMS
from outlier_features.files.run_files import RunFiles
from outlier_features.model.loading import Part, Wanted
from outlier_features.norms.norm_tables import write_norms
from outlier_features.norms.norms import norms_of


def check_norms(
    source: Path,
    dims: Path,
    norms: Path,
    gains: Path,
    *,
    threads: int,
    trust_remote_code: bool,
    part: Part | None,
    placement: Wanted,
) -> None:
    """Write `norms`, a row per norm of the model, and `gains`, a row per selected dim and norm of residual dims.

    source   the model's source.json
    dims     the run's dims.parquet; dims that rules with `follow_up` select are looked at, all others compared with

    Of the model a few probe tokens are run, no text. Raises `InputError` where it cannot be used or is not the run's.
    """
    torch.set_num_threads(threads)
    files = RunFiles()
    rows, provenance = files.table(dims, DIMS)
    model = files.model(source)
    found = norms_of(Path(model["location"]), trust_remote_code, part, placement)
    write_norms(found, rows, norms, gains, provenance)
