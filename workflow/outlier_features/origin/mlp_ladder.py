"""How large the values are at each checkpoint of an MLP, from its input to what it adds to the residual stream."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from outlier_features.model.activation import activation_of, possible_ups
from outlier_features.model.sites import Block, Site
from outlier_features.model.verify_sites import TOLERANCE

Array = np.ndarray[Any, Any]
LADDER_SITES = ("mlp_norm", "mlp_pre", "mlp_act", "mlp_down", "mlp_out")
FACTORS = ("act_gate", "mlp_up")
RESIDUAL_BASIS = ("resid_mid", "mlp_norm", "mlp_down", "mlp_out")
EXPLODES = 2.0


@dataclass(frozen=True)
class Checkpoint:
    """A tensor of an MLP at the positions of a sequence, float32 (T, H), or None with the reason that it is `absent`.

    name       a site; `act_gate` and `mlp_up` are the factors whose product is `mlp_act` in a gated MLP
    previous   the checkpoint that it is compared with
    """

    name: str
    values: Array | None
    previous: str | None = None
    absent: str | None = None


def ladder_sites(block: Block) -> dict[str, Site]:
    """The tensors that `checkpoints` reads."""
    sites = {name: block.sites[name] for name in (*LADDER_SITES, "resid_mid") if name in block.sites}
    return sites | {f"mlp_linears.{n}": site for n, site in enumerate(block.mlp_linears)}


def checkpoints(
    block: Block, tensors: Mapping[str, torch.Tensor], absent: Mapping[str, str], config: Any
) -> list[Checkpoint]:
    """The checkpoints in their order; the factors of a gated MLP stand before `mlp_act`.

    tensors   by the names of `ladder_sites`, (T, H) each
    absent    why a site is not in `tensors`

    The first is `mlp_norm`, or `resid_mid` where the MLP reads the residual stream itself (OLMo-2). `mlp_out` is one of
    its own only where a norm makes it from `mlp_down`, or where the MLP's inside is not known.
    """
    values = {name: _array(tensor) for name, tensor in tensors.items() if name in (*LADDER_SITES, "resid_mid")}
    first = Checkpoint("mlp_norm", values.get("mlp_norm"), absent=absent.get("mlp_norm"))
    if "mlp_norm" in block.absent and "resid_mid" in values:
        first = Checkpoint("resid_mid", values["resid_mid"])
    chain = [first]
    for name in ("mlp_pre", "mlp_act", "mlp_down"):
        if name == "mlp_act":
            chain += _factors(block, tensors, config, first.name)
        chain.append(Checkpoint(name, values.get(name), _last(chain), absent.get(name)))
    written_as_is = "mlp_down" in values and block.sites["mlp_down"].module is block.sites["mlp_out"].module
    if "mlp_out" in values and not written_as_is:
        chain.append(Checkpoint("mlp_out", values["mlp_out"], _last(chain)))
    return chain


def _last(chain: Sequence[Checkpoint]) -> str | None:
    """The last checkpoint on the way through: not a factor, and not one that is absent."""
    return next((one.name for one in reversed(chain) if one.values is not None and one.name not in FACTORS), None)


def _factors(block: Block, tensors: Mapping[str, torch.Tensor], config: Any, source: str) -> Iterator[Checkpoint]:
    """`act_gate` and `mlp_up` where their product is `mlp_act`, else nothing."""
    function = activation_of(config, block.activation)
    if function is None or not tensors.keys() >= {"mlp_pre", "mlp_act"}:
        return
    with torch.inference_mode():
        gate, neurons = function(tensors["mlp_pre"]), tensors["mlp_act"]
    if gate.shape != neurons.shape or _equal(gate, neurons):
        return
    for up in possible_ups(len(block.mlp_linears), tensors, gate.shape[-1]):
        if _equal(gate * up, neurons):
            yield Checkpoint("act_gate", _array(gate), "mlp_pre")
            yield Checkpoint("mlp_up", _array(up), source)
            return


def _array(value: torch.Tensor) -> Array:
    return value.float().cpu().numpy()


def _equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    size = expected.abs().float()
    allowed = TOLERANCE[expected.dtype] * (size + size.square().mean(dim=-1, keepdim=True).sqrt())
    return bool(((found - expected).abs().float() <= allowed).all())


def ladder_rows(chain: Sequence[Checkpoint], position: int, dim: int) -> list[dict[str, Any]]:
    """A row for each checkpoint: over all positions, and at the traced `position`; `value` is that of `dim` there.

    The explosion point is the checkpoint with the largest max / previous max, if that is at least 2; the factors of a
    gated MLP are beside the way and cannot be it.
    """
    rows = [_row(one, position, dim) for one in chain]
    by_name = {row["checkpoint"]: row for row in rows}
    for row in rows:
        before = by_name[row["previous"]]["max_abs"] if row["previous"] else None
        if before is not None and row["max_abs"] is not None:
            row["change"] = row["max_abs"] - before
            row["growth"] = row["max_abs"] / before if before else None
    on_the_way = [row for row in rows if row["growth"] is not None and row["checkpoint"] not in FACTORS]
    most = max(on_the_way, key=lambda row: row["growth"], default=None)
    for row in rows:
        row["explosion"] = row is most and row["growth"] >= EXPLODES
    return rows


def _row(one: Checkpoint, position: int, dim: int) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(
        ("dims", "max_abs", "token", "dim", "median_abs", "ratio", "change", "growth", "traced_max_abs", "traced_dim",
         "traced_median_abs", "value")
    )  # fmt: skip
    row |= {"checkpoint": one.name, "previous": one.previous, "absent": one.absent}
    if one.values is None:
        return row | {"previous": None}
    size = np.abs(one.values)
    at, width = int(size.argmax()), size.shape[1]
    median = float(np.median(size))
    return row | {
        "dims": width,
        "max_abs": float(size.flat[at]),
        "token": at // width,
        "dim": at % width,
        "median_abs": median,
        "ratio": float(size.flat[at]) / median if median else None,
        "traced_max_abs": float(size[position].max()),
        "traced_dim": int(size[position].argmax()),
        "traced_median_abs": float(np.median(size[position])),
        "value": float(one.values[position, dim]) if one.name in RESIDUAL_BASIS else None,
    }
