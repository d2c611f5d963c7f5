"""The tables of norms and of their gains at the selected dims."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from outlier_features.files.tables import write_table
from outlier_features.norms.describe_gains import describe_gains, gains_at, spread_of_others
from outlier_features.norms.norm import Norm
from outlier_features.norms.norms_schema import GAINS, NORMS
from outlier_features.rules.kinds import followed

_AT = {name: dtype for name, dtype in GAINS.schema.items() if name not in ("population", "rule")}


def write_norms(
    found: Sequence[Norm], dims: pl.DataFrame, norms: Path, gains: Path, provenance: dict[str, Any]
) -> None:
    """Write `norms`, a row per norm, and `gains`, a row per dim that is selected and norm of residual dims."""
    selected = dims.filter(pl.col("selected"), pl.col("rule").is_in([*followed(provenance["rules"])])).select(
        "population", "rule", "dim"
    )
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
