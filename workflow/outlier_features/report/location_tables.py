"""What rule `location` counted, as rows of text for the report."""

from collections.abc import Iterator, Mapping
from typing import Any

from outlier_features.dim_marks import dim_mark
from outlier_features.model.bases import RESIDUAL, basis_of
from outlier_features.populations import over_population
from outlier_features.wording import DASH, capital, number, percent

Part = Mapping[str, Any]
DIMS = 10

_FACTS = (
    ("Elements over the threshold", lambda found: number(found["elements_over_threshold"])),
    ("Occurrences at kept locations", lambda found: number(found["occurrences"])),
    ("Their share of all values", lambda found: percent(found["occurrence_rate"])),
    ("Kept locations", lambda found: number(found["locations"])),
    ("Their share of all locations", lambda found: percent(found["location_rate"])),
    ("Mean share of layers that hit a kept location", lambda found: percent(found["mean_layer_fraction"])),
    ("Dimensions with occurrences", lambda found: number(len(found["dims"]))),
    ("Quartiles of all x", lambda found: _quartiles(found["quantiles"], ("q1", "median", "q3"))),
    ("Interquartile range of all x", lambda found: number(found["quantiles"]["iqr"])),
    (
        "Kept |x|: minimum, quartiles, maximum",
        lambda found: _quartiles(found["magnitudes"], ("min", "q1", "median", "q3", "max")),
    ),
)


def _quartiles(values: Part, names: tuple[str, ...]) -> str:
    return ", ".join(number(values[name]) for name in names) if values[names[0]] is not None else DASH


def location_facts(document: Part) -> dict[str, Any]:
    """Columns (population, site), and rows of a fact with its value in each."""
    columns = [(population, site) for population, part in document["populations"].items() for site in part["sites"]]
    found = [document["populations"][population]["sites"][site] for population, site in columns]
    rows = [(name, [text(one) for one in found]) for name, text in _FACTS] if columns else []
    return {"columns": columns, "rows": rows}


def location_dims(document: Part) -> list[dict[str, Any]]:
    """The dims with the most kept occurrences of each population and site."""
    return [
        {
            "population": population,
            "site": site,
            "dim": dim_mark(row["dim"]) if basis_of(site) == RESIDUAL else row["dim"],
            "count": number(row["count"]),
            "share": percent(row["share"]),
            "positive": percent(row["positive"] / row["count"]),
            "negative": percent(row["negative"] / row["count"]),
            "one_sided": "yes" if row["one_sided"] else "no",
        }
        for population, part in document["populations"].items()
        for site, found in part["sites"].items()
        for row in found["dims"][:DIMS]
    ]


def location_comparisons(document: Part) -> Iterator[str]:
    """A sentence for every two sites."""
    for population, part in document["populations"].items():
        for found in part["comparisons"]:
            (one, other), (first, second) = found["keys"], found["dims"]
            named = dim_mark if {basis_of(one), basis_of(other)} == {RESIDUAL} else str
            index = "none, as neither has any" if found["jaccard"] is None else number(float(found["jaccard"]))
            top = ", ".join(f"{named(row['dim'])} ({number(row['min_count'])})" for row in found["top_common"][:DIMS])
            yield (
                f"{capital(over_population(population))}, {one} has {first} and {other} {second} dimensions with kept "
                f"occurrences, {found['common']} in common, Jaccard index {index}."
                + (f" In common, with the smaller count of the two: {top}." if top else "")
            )
