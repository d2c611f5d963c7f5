"""What the page of a neuron shows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from outlier_features.gallery.deciles import deciles
from outlier_features.gallery.gallery_run import GalleryRun, by_neuron
from outlier_features.gallery.gallery_schema import GALLERY_EXAMPLES
from outlier_features.gallery.names import THE_NEURON, Neuron, sequence_name
from outlier_features.gallery.packed_values import halves
from outlier_features.gallery.token_pieces import shown_bytes
from outlier_features.gallery.windows import joined_windows
from outlier_features.neurons.neurons_schema import NEURON_STATISTICS, NEURONS
from outlier_features.populations import population_title

SIDES = ("max", "min")
MUCH = 2  # a page that shows more than one in so many of the values along the text has them all
STATISTICS = ("tokens", "active_share", "mean", "std", "kurtosis", "min", "max")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class NeuronRows:
    """What a run says of one neuron; `page` is its row of those that have pages, or None."""

    neuron: Neuron
    statistics: list[dict[str, Any]]
    ranked: list[dict[str, Any]]
    examples: list[dict[str, Any]]
    page: Row | None

    @classmethod
    def of(cls, run: GalleryRun, neurons: Sequence[Neuron]) -> "list[NeuronRows]":
        statistics, ranked, examples = (
            {neuron: frame.to_dicts() for neuron, frame in by_neuron(run.rows_of(table, neurons))}
            for table in (NEURON_STATISTICS, NEURONS, GALLERY_EXAMPLES)
        )
        pages = {Neuron(*(row[name] for name in THE_NEURON)): row for row in run.pages_of(neurons).to_dicts()}
        return [
            cls(one, statistics.get(one, []), ranked.get(one, []), examples.get(one, []), pages.get(one))
            for one in neurons
        ]


class Places:
    """The positions that a page shows, each once, by their numbers in it."""

    def __init__(self, rows: Iterable[Row]):
        self._numbers: dict[tuple[int, int], int] = {}
        self.values: list[float] = []
        for row in rows:
            if _place(row) not in self._numbers:
                self._numbers[_place(row)] = len(self.values)
                self.values.append(_short(row["value"]))

    def numbers(self, rows: Iterable[Row]) -> list[int]:
        """Of rows, in the order of their ranks."""
        return [self._numbers[_place(row)] for row in sorted(rows, key=lambda row: int(row["rank"]))]

    @property
    def positions(self) -> dict[int, list[int]]:
        """By sequence, in order."""
        found: dict[int, list[int]] = {}
        for sequence, token in sorted(self._numbers):
            found.setdefault(sequence, []).append(token)
        return found

    @property
    def columns(self) -> dict[str, list[Any]]:
        return {"sequence": [one for one, _ in self._numbers], "token": [one for _, one in self._numbers],
                "value": self.values}  # fmt: skip


def neuron_page(
    run: GalleryRun, rows: NeuronRows, values: Mapping[int, pl.Series], around: Sequence[Neuron | None]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The data of a neuron's page; and its values over whole sequences, where those are much more than it shows.

    values   along the text, by sequence; none where they were not recorded
    around   the neurons before and after it that have pages
    """
    examples = [row for row in rows.examples if row["rank"] is not None]
    places = Places([*rows.ranked, *examples])
    segments = [
        (sequence, first, end)
        for sequence, positions in places.positions.items()
        if sequence in values
        for first, end in joined_windows(positions, len(values[sequence]))
    ]
    along = {sequence: one.to_numpy() for sequence, one in values.items()}
    whole = [(sequence, 0, len(one)) for sequence, one in along.items()]
    has_more = MUCH * _positions(segments) < _positions(whole)
    segments = segments if has_more else whole
    page: Row = rows.page or dict.fromkeys(
        ("reasons", "writes_dims", "writes", "writes_weights", "top_tokens", "top_logits", "bottom_tokens",
         "bottom_logits", "nearest", "cosines")
    )  # fmt: skip
    data = {
        "name": str(rows.neuron),
        "neuron": rows.neuron._asdict(),
        "has_page": rows.page is not None,
        "reasons": page["reasons"] or [],
        "around": [None if one is None else str(one) for one in around],
        "populations": {row["population"]: population_title(row["population"]) for row in rows.statistics},
        "statistics": {row["population"]: {name: row[name] for name in STATISTICS} for row in rows.statistics},
        "histograms": {row["population"]: _histogram(row) for row in rows.statistics if row["tokens"]},
        "limit": limit(rows),
        "places": places.columns,
        "lists": {
            population: {side: places.numbers(_of(rows.ranked, population, side)) for side in SIDES}
            for population in dict.fromkeys(row["population"] for row in rows.statistics)
        },
        "intervals": [
            {"low": one[0]["low"], "high": one[0]["high"], "tokens": one[0]["in_interval"],
             "places": places.numbers(row for row in one if row["rank"] is not None)}
            for one in _intervals(rows.examples)
        ],
        "lengths": {sequence_name(one): run.length(one) for one in places.positions},
        "segments": segments,
        "values": halves(np.concatenate([along[one][first:end] for one, first, end in segments])) if segments else None,
        "has_more": has_more,
        "writes": [
            [*one, one[0] in run.dims_with_page] for one in _together(page, "writes_dims", "writes", "writes_weights")
        ],
        "top": [[token_name(run, token), logit] for token, logit in _together(page, "top_tokens", "top_logits")],
        "bottom": [[token_name(run, token), by] for token, by in _together(page, "bottom_tokens", "bottom_logits")],
        "nearest": _together(page, "nearest", "cosines"),
        "published": _published(run, rows),
    }  # fmt: skip
    return data, {sequence_name(one): halves(along[one]) for one in sorted(along)} if has_more else None


def _published(run: GalleryRun, rows: NeuronRows) -> dict[str, Any] | None:
    """What was published of the neuron's largest activations, each beside the run's own of that rank."""
    if rows.neuron.expert is not None:
        return None
    printed = run.published.filter(layer=rows.neuron.layer, neuron=rows.neuron.neuron).to_dicts()
    own = {row["rank"]: row for row in _of(rows.ranked, "all", "max")}
    beside = [
        [one["rank"], *(one[name] for name in ("value", "sequence", "position")),
         *(own.get(one["rank"], {}).get(name) for name in ("value", "sequence", "token"))]
        for one in printed
    ]  # fmt: skip
    return {"source": printed[0]["source"], "rows": beside} if printed else None


def _positions(segments: Iterable[tuple[int, int, int]]) -> int:
    return sum(end - first for _, first, end in segments)


def limit(rows: NeuronRows) -> float:
    """What the strongest colours stand for: the largest abs(x) over all positions; 0 where there is none."""
    ends = [row[name] for row in rows.statistics if row["population"] == "all" for name in ("min", "max")]
    return _short(max((abs(end) for end in ends if end is not None), default=0.0))


def token_name(run: GalleryRun, token: int) -> str:
    """A token of the vocabulary as it can be shown."""
    known = run.vocabulary.bytes_of(token)
    return f"token {token}" if known is None else shown_bytes(known)


def _place(row: Row) -> tuple[int, int]:
    return row["sequence"], row["token"]


def _of(rows: Iterable[Row], population: str, side: str) -> list[Row]:
    return [row for row in rows if row["population"] == population and row["side"] == side]


def _intervals(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each interval, from the lowest."""
    found: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: int(row["interval"])):
        found.setdefault(row["interval"], []).append(row)
    return [*found.values()]


def _together(page: Row, *names: str) -> list[tuple[Any, ...]]:
    """Lists of a row, side by side; none where the row has none."""
    return [*zip(*(page[name] or [] for name in names), strict=True)]


def _histogram(row: Row) -> dict[str, Any]:
    low, width, counts = row["histogram_low"], row["histogram_width"], row["histogram"]
    return {"low": low, "width": width, "counts": counts,
            "deciles": deciles(low, width, counts, row["min"], row["max"])}  # fmt: skip


def _short(value: float) -> float:
    """A number of 32 bits has no more than nine digits."""
    return float(f"{value:.9g}")
