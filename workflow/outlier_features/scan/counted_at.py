"""Whether what was listed and counted of a chunk serves the rules of today."""

from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import TensorFile

CountedAt = Mapping[str, Any]  # as `rules.configured.counted_at` has it
ScaledAt = Mapping[str, Mapping[str, float]]  # as `rules.configured.scaled_at` has it


def uncounted(found: CountedAt, wanted: CountedAt, dense: Collection[str]) -> str | None:
    """In words what is wanted and was not counted, at the sites that have sequences with too many hits; None if all is.

    Counts of another rule at the same sites serve, and a list also serves a larger threshold and a larger ratio.
    """
    for site in sorted(dense):
        for rule in wanted["pairs"].values():
            if site in rule["sites"]:
                missing = [f"{one:g}" for one in rule["thresholds"] if counting_rule(found, rule["sites"], one) is None]
                if missing:
                    return f"hits of {site} at the threshold {', '.join(missing)}"
        if site in wanted["listed"]:
            here, before = wanted["listed"][site], found["listed"].get(site)
            lower = [key for key in ("threshold", "ratio") if before is None or here[key] < before[key]]
            if lower:
                return f"values of {site} by the {lower[0]} {here[lower[0]]:g}"
    return None


def counting_rule(found: CountedAt, sites: Collection[str], threshold: float) -> str | None:
    """The rule whose pairs were counted jointly at `sites` and at a threshold."""
    for name, one in found["pairs"].items():
        if set(one["sites"]) == set(sites) and threshold in one["thresholds"]:
            return str(name)
    return None


def serving(wanted: CountedAt, statistics: Path) -> CountedAt:
    """What to count a chunk at: `wanted`, or what it was counted at by its `statistics`, where that still serves."""
    recorded = _recorded(statistics, "counted")
    try:
        found: CountedAt = recorded["at"]
        return wanted if uncounted(found, wanted, recorded["dense"]) else found
    except (LookupError, TypeError, AttributeError):
        return wanted


def serving_scales(wanted: ScaledAt, statistics: Path) -> ScaledAt:
    """From where on to list scaled values of a chunk: `wanted`, or as its `statistics` say, where that still serves.

    A list from a smaller multiple on serves a larger one.
    """
    found: ScaledAt = _recorded(statistics, "scaled_at")
    try:
        serves = all(found[site][scale] <= k for site, scales in wanted.items() for scale, k in scales.items())
    except (LookupError, TypeError, AttributeError):
        return wanted
    return found if serves else wanted


def _recorded(statistics: Path, key: str) -> Any:
    """A fact of the provenance; None of a file that is not there yet, or is damaged, as the job will say."""
    try:
        status = statistics.stat()
        return _provenance(statistics, status.st_mtime_ns, status.st_size)[key]
    except (OSError, InputError, LookupError):
        return None


@lru_cache(maxsize=1)  # both questions about a chunk come one after the other
def _provenance(statistics: Path, mtime_ns: int, size: int) -> Mapping[str, Any]:
    return TensorFile(statistics).provenance
