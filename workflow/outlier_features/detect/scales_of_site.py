"""The scales that a site's values are compared with in a chunk: those that were asked for, as far as it has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from outlier_features.extract.activations import Activations
from outlier_features.scan.scales import Scale, usable_gains


@dataclass(frozen=True)
class ScalesOfSite:
    """By name, the scales and reasons for those that the site lacks; and what its gains are not, for the provenance.

    gains   `unknown`: layers without gains that are understood; `left_out`: by layer, dims with too small a gain
    """

    scales: dict[str, Scale]
    absent: dict[str, str]
    gains: dict[str, Any]


def scales_of_site(chunk: Activations, site: str, wanted: Mapping[str, float]) -> ScalesOfSite:
    """`wanted`: by scale the smallest multiple of it that is a hit."""
    scales = {name: Scale(float(k)) for name, k in wanted.items() if name != "gain"}
    if "gain" not in wanted:
        return ScalesOfSite(scales, {}, {})
    known = chunk.gains.get(site, "no norm that is understood makes it")
    if isinstance(known, str):
        return ScalesOfSite(scales, {"gain": known}, {})
    layers = chunk.sites[site].layers
    gains, left_out = usable_gains(known)
    unknown = [layer for layer, row in zip(layers, known, strict=True) if not np.isfinite(row).all()]
    about = {"unknown": unknown, "left_out": {layers[index]: dims for index, dims in left_out.items()}}
    return ScalesOfSite(scales | {"gain": Scale(float(wanted["gain"]), gains)}, {}, about)
