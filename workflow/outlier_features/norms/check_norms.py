"""Rule check_norms: the gains of a model's norms, and what they are at the selected dims."""

from pathlib import Path

from outlier_features.dims.dims_schema import DIMS
from outlier_features.files.run_files import RunFiles
from outlier_features.norms.kept_norms import read_norms
from outlier_features.norms.norm_tables import write_norms


def check_norms(losses: Path, dims: Path, norms: Path, gains: Path) -> None:
    """Write `norms`, a row per norm of the model, and `gains`, a row per selected dim and norm of residual dims.

    losses   of the run's first chunk: the extraction left the norms there
    dims     the run's dims.parquet; dims that rules with `follow_up` select are looked at, all others compared with

    The model is not loaded. Raises `InputError` where its norms could not be had, or the files are of different runs.
    """
    files = RunFiles()
    rows, provenance = files.table(dims, DIMS)
    write_norms(read_norms(files.tensors(losses)), rows, norms, gains, provenance)
