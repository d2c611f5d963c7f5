"""The largest |x| of a run: at which site, in which layer and sequence."""

from dataclasses import dataclass

from outlier_features.files.tensorfile import TensorFile
from outlier_features.model.bases import RESID_POST
from outlier_features.scan.statistics import SiteStatistics


@dataclass(frozen=True)
class Largest:
    site: str
    layer: int
    sequence: int
    max_abs: float


def find_largest(statistics: TensorFile) -> Largest | None:
    """The largest `abs(x)` on resid_post, or of any site where the run lacks that; None in a run without sites.

    Of equals it is that of the first site by name, then layer, then sequence. Padding does not count.
    """
    sites = sorted(statistics.provenance["sites"])
    candidates = [_of_site(statistics, site) for site in ([RESID_POST] if RESID_POST in sites else sites)]
    return max(candidates, key=lambda one: one.max_abs, default=None)


def _of_site(file: TensorFile, site: str) -> Largest:
    statistics = SiteStatistics.read(file, site)
    largest = statistics.sequence_top("all")[:, :, 0]
    layer, sequence = divmod(int(largest.argmax()), largest.shape[1])
    return Largest(site, int(statistics.layers[layer]), sequence, float(largest[layer, sequence]))
