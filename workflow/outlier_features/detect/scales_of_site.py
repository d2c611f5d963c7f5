"""The scales that a site's values are compared with in a chunk: those that were asked for, as far as it has them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from outlier_features.extract.activations import Activations
from outlier_features.scan.scales import Scale, usable_gains
from outlier_features.wording import layers as named


@dataclass(frozen=True)
class ScalesOfSite:
    """By name, the scales and the reasons for those that the site lacks; by layer, the dims with too small a gain."""

    scales: dict[str, Scale]
    absent: dict[str, str]
    left_out: dict[int, list[int]]


def scales_of_site(chunk: Activations, site: str, wanted: Mapping[str, float]) -> ScalesOfSite:
    """`wanted`: by scale the smallest multiple of it that is a hit."""
    scales = {name: Scale(float(k)) for name, k in wanted.items() if name != "gain"}
    if "gain" not in wanted:
        return ScalesOfSite(scales, {}, {})
    known = chunk.gains.get(site, "no norm that is understood makes it")
    if isinstance(known, str):
        return ScalesOfSite(scales, {"gain": known}, {})
    layers = chunk.sites[site].layers
    unknown = [layer for layer, row in zip(layers, known, strict=True) if not np.isfinite(row).all()]
    if unknown:  # shares over the other layers alone would not be those of the rule
        return ScalesOfSite(scales, {"gain": f"the norm that makes it is not understood in {named(unknown)}"}, {})
    gains, left_out = usable_gains(known)
    by_layer = {layers[index]: dims for index, dims in left_out.items()}
    return ScalesOfSite(scales | {"gain": Scale(float(wanted["gain"]), gains)}, {}, by_layer)
