"""Rule `location` on one or two keys of a dump, as a document."""

import sys
from collections.abc import Mapping
from typing import Any

from outlier_features.dump.dumps import find_sites
from outlier_features.errors import InputError
from outlier_features.locate.count_document import COMPARISON, comparison_document, count_document
from outlier_features.locate.count_locations import LocationCount, LocationRule, compare_dims, count_locations
from outlier_features.progress import byte_bar
from outlier_features.scan.site_tensors import FLOATS, SiteTensors


def count_dump(source: Mapping[str, Any], rule: LocationRule, *, quiet: bool = False, **options: Any) -> dict[str, Any]:
    """The `count_document` of each key of a dump, and of two keys the comparison of their dims.

    source    `dump`, `keys`, `layout`, `lengths` and `layers` as in a catalog entry; the keys are by their names in the
              document
    options   those of `count_locations`

    What is counted, and progress, go to stderr, but not if `quiet`.
    """
    sites = find_sites(source)
    if len({site.dims for site in sites.values()}) > 1:
        first, second = (f"{site.site} has {site.dims} dims" for site in sites.values())
        path = next(iter(sites.values())).path
        raise InputError(f"{path}: {first} and {second}, expected as many, or they cannot be compared")
    counts = {key: _count_key(site, rule, quiet, options) for key, site in sites.items()}
    document = {key: count_document(count) for key, count in counts.items()}
    if len(counts) == 2:
        first, second = counts
        document[COMPARISON] = comparison_document((first, second), compare_dims(counts[first], counts[second]))
    return document


def _count_key(site: SiteTensors, rule: LocationRule, quiet: bool, options: dict[str, Any]) -> LocationCount:
    sampled = [bool(options.get(name)) for name in ("value_samples", "magnitude_samples")]
    passes = 1 + sampled[0] + (site.dtype == "F32" and not all(sampled))
    if not quiet:
        read_as = f" read as {FLOATS[site.dtype]}" if site.stored != site.dtype else ""
        ragged = f" at most, {int(site.lengths.sum()):,} positions" if site.mask is not None else ""
        print(
            f"{site.site}: {site.full_shape}{ragged} {FLOATS[site.stored]}{read_as}, {site.values:,} elements, "
            f"{site.nbytes / 2**20:,.1f} MiB",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    with byte_bar(f"count {site.site}", site.nbytes * passes, disable=quiet) as bar:
        return count_locations([site], rule, progress=bar.update, **options)
