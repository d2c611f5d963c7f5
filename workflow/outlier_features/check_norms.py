"""Rule check_norms: the gains of a model's norms, and what they are at the selected dims."""

from pathlib import Path
from typing import Any

import polars as pl
import torch

from outlier_features.artifacts import require_equal
from outlier_features.describe_gains import describe_gains, gains_at, spread_of_others
from outlier_features.model_source import source_of
from outlier_features.norms import Norm, norms_of
from outlier_features.tables import DIMS, GAINS, NORMS, read_table, write_table

RULES = ("dettmers", "massive")  # those whose dims are the residual stream's
_AT = {name: dtype for name, dtype in GAINS.schema.items() if name not in ("population", "rule")}


def check_norms(source: Path, dims: Path, norms: Path, gains: Path, *, threads: int, trust_remote_code: bool) -> None:
    """Write `norms`, a row per norm of the model, and `gains`, a row per selected dim and norm of residual dims.

    source   the model's source.json
    dims     the run's dims.parquet; dims that dettmers or massive selects are looked at, all others compared with

    Of the model a few probe tokens are run, no text. Raises `InputError` where it cannot be used or is not the run's.
    """
    torch.set_num_threads(threads)
    rows, provenance = read_table(dims, DIMS)
    model = source_of(source)
    require_equal({"model_revision": model["revision"]}, provenance, ("model_revision",), dims)
    found = norms_of(Path(model["location"]), trust_remote_code)
    selected = rows.filter(pl.col("selected"), pl.col("rule").is_in(RULES)).select("population", "rule", "dim")
    chosen = selected["dim"].unique().sort().to_list()
    described = [describe_norm(norm, chosen) for norm in found]
    write_table(norms, pl.DataFrame(described, schema=NORMS.schema), NORMS, provenance)
    at = pl.DataFrame([row for norm in found for row in _at(norm, chosen)], schema=_AT)
    write_table(gains, selected.join(at, on="dim", maintain_order="left_right"), GAINS, provenance)


def describe_norm(norm: Norm, dims: list[int]) -> dict[str, Any]:
    """A row of `norms`; of a norm without a gain, or an undecided one, what concerns the gain is None."""
    row: dict[str, Any] = dict.fromkeys(NORMS.schema)
    if norm.gain is not None:
        row |= describe_gains({norm.module: norm.gain})[norm.module]
        row |= spread_of_others(norm.gain, dims) if norm.residual else {}
    return row | {
        "module": norm.module,
        "site": site_of(norm),
        "layer": norm.layer,
        "residual": norm.residual,
        "kind": norm.kind,
        "parameterization": norm.parameterization,
        "reason": norm.reason,
        "tensor": norm.tensor,
        "shape": None if norm.shape is None else " x ".join(map(str, norm.shape)),
        "size": norm.size,
        "bias_max_abs": norm.bias_max_abs,
    }


def site_of(norm: Norm) -> str | None:
    return "+".join(norm.sites) or None


def _at(norm: Norm, dims: list[int]) -> list[dict[str, Any]]:
    if norm.gain is None or not norm.residual:
        return []
    where = {"module": norm.module, "site": site_of(norm), "layer": norm.layer, "size": norm.size}
    return [where | row for row in gains_at(norm.gain, dims)]
