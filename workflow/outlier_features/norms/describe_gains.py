"""What the gains of norms are: whether they are exactly 1, how large they are, and at some dims against the others."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from outlier_features.errors import InputError
from outlier_features.norms.norm import PARAMETERIZATION, Gain

OTHERS = ("others_min", "others_p05", "others_median", "others_p95", "others_max")


def describe_gains(gains: Mapping[str, Gain]) -> dict[str, dict[str, Any]]:
    """For each norm: shape, size, dtype, parameterization, how many gains are exactly 1, and min, max, mean and median.

    Raises `InputError` where a norm has no values, or some that are NaN or infinite.
    """
    return {module: _describe(module, gain) for module, gain in gains.items()}


def _describe(module: str, gain: Gain) -> dict[str, Any]:
    if not gain.stored.size:
        raise InputError(f"{module}: its gains have shape {list(gain.stored.shape)}, expected at least one value")
    if bad := int((~np.isfinite(gain.stored)).sum()):
        raise InputError(f"{module}: {bad} of its {gain.stored.size} gains are NaN or infinite, expected finite values")
    effective = gain.effective
    return {
        "shape": list(gain.stored.shape),
        "size": gain.stored.size,
        "dtype": gain.dtype,
        "parameterization": PARAMETERIZATION[gain.offset],
        "exactly_one": gain.exactly_one,
        "all_one": gain.exactly_one == gain.stored.size,
        "min": float(effective.min()),
        "max": float(effective.max()),
        "mean": float(effective.mean()),
        "median": float(np.median(effective)),
    }


def gains_at(gain: Gain, dims: Iterable[int]) -> list[dict[str, Any]]:
    """For each of `dims`: its gain, the rank of abs(gain) among all dims (1 = largest; equal ones share the smaller
    rank), and the ratio of abs(gain) to the median of the dims that are not among `dims` (None without such, or if
    that is 0)."""
    dims = list(dims)
    effective = gain.effective
    size, median = np.abs(effective), spread_of_others(gain, dims)["others_median"]
    return [
        {
            "dim": dim,
            "gain": float(effective[dim]),
            "rank": 1 + int((size > size[dim]).sum()),
            "ratio": float(size[dim] / median) if median else None,
        }
        for dim in dims
    ]


def spread_of_others(gain: Gain, dims: Iterable[int]) -> dict[str, float | None]:
    """Minimum, 5 % quantile, median, 95 % quantile and maximum of abs(gain) over the dims that are not among `dims`."""
    others = np.delete(np.abs(gain.effective), sorted(set(dims)))
    if not others.size:
        return dict.fromkeys(OTHERS)
    return dict(zip(OTHERS, map(float, np.quantile(others, [0, 0.05, 0.5, 0.95, 1])), strict=True))


def all_exactly_one(rows: Iterable[Mapping[str, Any]]) -> bool | None:
    """Whether every gain of the described norms is exactly 1; None if there is no gain, or it depends on unknown ones.

    Of a norm without a gain, `parameterization` is `none`; of one whose gain is unknown, it is None.
    """
    with_gain = [row for row in rows if row["parameterization"] != "none"]
    if any(row["all_one"] is False for row in with_gain):
        return False
    return True if with_gain and all(row["all_one"] for row in with_gain) else None
