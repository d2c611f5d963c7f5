"""Rule check_dump_norms: the gains of norms that a dump holds, and what they are at the selected dims."""

from collections.abc import Mapping
from pathlib import Path

from outlier_features.dims.dims_schema import DIMS
from outlier_features.files.numpy_archive import open_tensors
from outlier_features.files.tables import read_table
from outlier_features.model.bases import RESIDUAL_BASIS
from outlier_features.norms.gains_in_file import named_gains
from outlier_features.norms.norm import Gain, Norm
from outlier_features.norms.norm_tables import write_norms


def check_dump_norms(file: Path, keys: Mapping[str, str], dims: Path, norms: Path, gains: Path) -> None:
    """Write `norms`, a row per norm of the dump, and `gains`, a row per selected dim and norm of residual dims.

    file   of the dump; the first, as all hold the same
    keys   the gains' keys, by site or by another name; empty: those under `rmsnorm_gammas/<module>`
    dims   the run's dims.parquet; dims that rules with `follow_up` select are looked at, all others compared with

    Raises `InputError` where a key is missing or does not hold gains.
    """
    rows, provenance = read_table(dims, DIMS)
    found = [_norm(name, key, gain, provenance["d_model"]) for name, key, gain in named_gains(open_tensors(file), keys)]
    write_norms(found, rows, norms, gains, provenance)


def _norm(name: str, key: str, gain: Gain, d_model: int | None) -> Norm:
    """The site and the block that a name such as `attn_norm.3` tells."""
    stem, _, layer = name.rpartition(".")
    site, index = (stem, int(layer)) if stem in RESIDUAL_BASIS and layer.isdecimal() else (name, None)
    return Norm(
        module=name,
        sites=(site,) if site in RESIDUAL_BASIS else (),
        layer=index,
        residual=gain.stored.size == d_model,
        kind=None,
        parameterization="w",
        reason=None,
        size=gain.stored.size,
        shape=gain.stored.shape,
        tensor=key,
        gain=gain,
    )
