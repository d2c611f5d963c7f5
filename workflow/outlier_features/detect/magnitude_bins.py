"""How the abs(x) of a layer are distributed: exact counts in bins from the statistics' histogram.

A bin is half an octave, from 2^k to 1.5 * 2^k and from there to 2^(k+1), so the edges are values of every format and
edges of the histogram, which counts by 16 bits: no count is estimated. 6, the threshold of rule dettmers, is an edge.
"""

import numpy as np
import polars as pl

from outlier_features.detect.layers_schema import DISTRIBUTION
from outlier_features.populations import POPULATIONS
from outlier_features.scan.statistics import Array, SiteStatistics

_SMALLEST_NORMAL = 2.0**-126  # of float32: below, the top 16 bits do not resolve halves of octaves


def distribution_rows(site: str, statistics: SiteStatistics, population: str, stored_as: str) -> pl.DataFrame:
    """A row of the table of distributions for each layer and occupied bin; none for a population without positions.

    stored_as   format of the values that were counted, as safetensors names it: F32, BF16 or F16
    """
    rows = np.repeat(np.arange(2 * len(statistics.layers)), np.diff(statistics.offsets))
    layer, part = np.divmod(rows, 2)
    member = np.isin(part, POPULATIONS[population])
    magnitude = _magnitudes(statistics.bins[member], stored_as)
    subnormal = stored_as == "F32" and magnitude < _SMALLEST_NORMAL
    mantissa, exponent = np.frexp(np.where(subnormal, 0.0, magnitude))
    low = np.ldexp(np.where(mantissa < 0.75, 0.5, 0.75) * (mantissa > 0), exponent)
    high = np.ldexp(np.where(mantissa < 0.75, 0.75, 1.0) * (mantissa > 0), exponent)
    if stored_as == "F32":
        high[mantissa == 0] = _SMALLEST_NORMAL
    return (
        pl.DataFrame(
            {"layer": statistics.layers[layer[member]], "low": low, "high": high, "values": statistics.counts[member]}
        )
        .group_by("layer", "low", "high")
        .agg(pl.col("values").sum())
        .sort("layer", "low")
        .with_columns(population=pl.lit(population), site=pl.lit(site))
        .pipe(DISTRIBUTION.cast)
    )


def _magnitudes(bins: Array, stored_as: str) -> Array:
    """The smallest abs(x) of each bin of the histogram, float64."""
    bits = bins & np.uint16(0x7FFF)
    if stored_as == "F16":
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
