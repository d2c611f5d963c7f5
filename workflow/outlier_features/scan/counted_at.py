"""At which thresholds hits are counted where they are too many to be listed, and whether they serve other rules too."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import TensorFile
from outlier_features.rules import DETTMERS_SITES, MASSIVE_SITE

CountedAt = Mapping[str, Any]


def counted_at(dettmers: Mapping[str, Any], massive: Mapping[str, Any], grid: Mapping[str, Any]) -> CountedAt:
    """What the rules need.

    pairs        the sites of each rule whose pairs are counted, jointly
    thresholds   at which they are, ascending
    massive      site, threshold and ratio of the rule whose values are listed all the same

    The arguments are the configuration's `rules.dettmers`, `rules.massive` and `sensitivity`.
    """
    return {
        "pairs": {rule: list(sites) for rule, sites in DETTMERS_SITES.items()},
        "thresholds": sorted({float(dettmers["threshold"]), *map(float, grid["thresholds"])}),
        "massive": {"site": MASSIVE_SITE, **{key: float(massive[key]) for key in ("threshold", "ratio")}},
    }


def uncounted(found: CountedAt, wanted: CountedAt, dense: Collection[str]) -> str | None:
    """In words what is wanted and was not counted, at the sites that have sequences with too many hits; None if all is.

    A list for rule massive also serves a larger threshold and a larger ratio.
    """
    for site in sorted(dense):
        if any(site in sites for sites in wanted["pairs"].values()):
            missing = [f"{threshold:g}" for threshold in wanted["thresholds"] if threshold not in found["thresholds"]]
            if missing:
                return f"hits of {site} at the threshold {', '.join(missing)}"
        if site == wanted["massive"]["site"]:
            lower = [key for key in ("threshold", "ratio") if wanted["massive"][key] < found["massive"][key]]
            if lower:
                return f"massive activations by the {lower[0]} {wanted['massive'][lower[0]]:g}"
    return None


def serving(wanted: CountedAt, statistics: Path) -> CountedAt:
    """What to count a chunk at: `wanted`, or what it was counted at by its `statistics`, where that still serves."""
    try:
        recorded = TensorFile(statistics).provenance["counted"]
        missing = uncounted(recorded["at"], wanted, recorded["dense"])
    except (InputError, LookupError, TypeError, AttributeError):
        return wanted  # not there yet, or damaged, as the job will say
    found: CountedAt = recorded["at"]
    return wanted if missing else found
