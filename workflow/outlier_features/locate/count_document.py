"""What was counted as a JSON document, and the same in long form as CSV."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from outlier_features.scan.site_tensors import FLOATS

if TYPE_CHECKING:  # with numba, half a second, which other commands are spared
    from outlier_features.locate.count_locations import DimComparison, LocationCount
    from outlier_features.locate.quantiles import Quartiles

COMPARISON = "comparison"
_COLUMNS = ("key", "table", "row", "quantity", "value")


def count_document(count: "LocationCount") -> dict[str, Any]:
    """Shares are fractions, None where nothing was kept. What was sampled has `samples` and `standard_errors`."""
    found, (_, layers, t, h) = count.occurrences, count.shape
    return {
        "shape": list(count.shape),
        "dtype": FLOATS[count.dtype],
        **({"positions": count.positions} if count.ragged else {}),
        "threshold": count.rule.threshold,
        **({"inclusive": True} if count.rule.inclusive else {}),
        "min_layer_fraction": count.rule.layer_share,
        "elements_over_threshold": count.over,
        "occurrences": found,
        "occurrence_rate": found / (count.positions * layers * h),
        "locations": count.locations,
        "location_rate": count.locations / (count.positions * h),
        "mean_layer_fraction": _share(found, count.locations * layers),
        "quantiles": {**_quartiles(count.quartiles), "iqr": count.quartiles.iqr, **_errors(count.quartiles, iqr=True)},
        "dims": [
            {
                "dim": dim,
                "count": int(count.dim_counts[dim]),
                "share": _share(int(count.dim_counts[dim]), found),
                "positive": int(count.dim_positive[dim]),
                "negative": int(count.dim_negative[dim]),
                "one_sided": count.one_sided(dim),
            }
            for dim in count.dims.tolist()
        ],
        "layers": _rows("layer", count.layers, count.layer_counts, found),
        "first_layers": _rows("layer", count.layers, count.first_layer_counts, count.locations),
        "tokens": _rows("token", range(t), count.token_counts, found),
        "magnitudes": _magnitudes(count),
    }


def comparison_document(keys: tuple[str, str], comparison: "DimComparison") -> dict[str, Any]:
    pairs = zip(comparison.common.tolist(), comparison.min_counts.tolist(), strict=True)
    return {
        "keys": list(keys),
        "dims": list(comparison.dims),
        "common": len(comparison.common),
        "jaccard": comparison.jaccard,
        "top_common": [{"dim": dim, "min_count": smaller} for dim, smaller in pairs],
    }


def to_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(document: Mapping[str, Any]) -> str:
    """One number a line, with the key, the table and the row that it stands in; nulls are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for key, content in document.items():
        for table, row, quantity, value in _long(content):
            writer.writerow([key, table, row, quantity, str(value).lower() if isinstance(value, bool) else value])
    return text.getvalue()


def _long(content: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from ((name, *row) for row in _of_mapping(value))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    (_, label), *quantities = item.items()
                    yield from ((name, label, quantity, number) for quantity, number in quantities)
                else:
                    yield "summary", index, name, item
        else:
            yield "summary", "", name, value


def _of_mapping(values: Mapping[str, Any], row: str = "") -> Iterator[tuple[str, str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _of_mapping(value, name)
        else:
            yield row, name, value


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _rows(label: str, labels: Any, counts: Any, whole: int) -> list[dict[str, Any]]:
    pairs = zip(labels, counts.tolist(), strict=True)
    return [{label: index, "count": count, "share": _share(count, whole)} for index, count in pairs]


def _quartiles(quartiles: "Quartiles") -> dict[str, float]:
    return {"q1": quartiles.q1, "median": quartiles.median, "q3": quartiles.q3}


def _errors(quartiles: "Quartiles", iqr: bool = False) -> dict[str, Any]:
    if quartiles.errors is None:
        return {}
    errors: dict[str, Any] = dict(zip(("q1", "median", "q3"), quartiles.errors, strict=True))
    return {
        "samples": quartiles.samples,
        "standard_errors": {**errors, "iqr": quartiles.iqr_error} if iqr else errors,
    }


def _magnitudes(count: "LocationCount") -> dict[str, Any]:
    if count.magnitudes is None or count.extremes is None:
        return dict.fromkeys(("min", "q1", "median", "q3", "max"))
    low, high = count.extremes
    return {"min": low, **_quartiles(count.magnitudes), "max": high, **_errors(count.magnitudes)}
