"""Rule `location` on one or two keys of a dump, as a document."""

import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from outlier_features.dump.dumps import shape_of, site_tensors
from outlier_features.errors import InputError
from outlier_features.files.tensorfile import DTYPES, TensorFile
from outlier_features.locate.count_document import COMPARISON, comparison_document, count_document
from outlier_features.locate.count_locations import LocationCount, LocationRule, compare_dims, count_locations
from outlier_features.progress import byte_bar
from outlier_features.scan.site_tensors import SiteTensors, itemsize


def count_dump(
    path: str | Path, keys: Sequence[str], rule: LocationRule, *, quiet: bool = False, **options: Any
) -> dict[str, Any]:
    """The `count_document` of each key of a file, and of two keys the comparison of their dims.

    `options` are those of `count_locations`. What is counted, and progress, go to stderr, but not if `quiet`.
    """
    file = TensorFile(path)
    sites = [site_tensors(file, key) for key in keys]
    if len({site.shape[2] for site in sites}) > 1:
        first, second = (f"{site.site} has {site.shape[2]} dims" for site in sites)
        raise InputError(f"{file.path}: {first} and {second}, expected as many, or they cannot be compared")
    counts = [_count_key(site, rule, quiet, options) for site in sites]
    document = {key: count_document(count) for key, count in zip(keys, counts, strict=True)}
    if len(counts) == 2:
        document[COMPARISON] = comparison_document((keys[0], keys[1]), compare_dims(*counts))
    return document


def _count_key(site: SiteTensors, rule: LocationRule, quiet: bool, options: dict[str, Any]) -> LocationCount:
    shape = shape_of([site])
    size = prod(shape) * itemsize(site.dtype)
    if not quiet:
        line = f"{site.site}: {shape} {DTYPES[site.dtype]}, {prod(shape):,} elements, {size / 2**20:,.1f} MiB"
        print(line, file=sys.stderr, flush=True)
    sampled = [bool(options.get(name)) for name in ("value_samples", "magnitude_samples")]
    passes = 1 + sampled[0] + (site.dtype == "F32" and not all(sampled))
    with byte_bar(f"count {site.site}", size * passes, disable=quiet) as bar:
        return count_locations([site], rule, progress=bar.update, **options)
