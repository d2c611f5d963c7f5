"""A run's neurons as JSON lines, for programs that show those of any model; docs/gallery-export.md has the keys."""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlier_features.files.artifacts import replacing
from outlier_features.gallery.gallery_run import GalleryRun
from outlier_features.gallery.neuron_page import NeuronRows
from outlier_features.tokens.token_text import token_text

_AT_ONCE = 512  # neurons whose rows are looked up together
_BY_RANK = -1.0  # in `binContains`: drawn by rank, not from an interval
Row = Mapping[str, Any]


def write_lines(run: GalleryRun, output: Path, population: str) -> int:
    """Write a line for each neuron that has a page, gzipped where the name ends in .gz; gives how many there are.

    population   whose largest and smallest activations are listed

    Raises `InputError` where the run has no gallery.
    """
    run.require_ranking()
    with replacing(output) as temporary, temporary.open("wb") as file:
        # Without a time in its header the same lines are the same file.
        binary = gzip.GzipFile("", "wb", mtime=0, fileobj=file) if output.suffix == ".gz" else file
        with TextIOWrapper(binary, encoding="utf-8", newline="\n") as text:
            count = 0
            for line in _lines(run, population):
                text.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
                count += 1
    return count


def _lines(run: GalleryRun, population: str) -> Iterator[dict[str, Any]]:
    tokens = lru_cache(maxsize=1024)(lambda sequence: _tokens(run, sequence))
    neurons = run.neurons_with_page
    for start in range(0, len(neurons), _AT_ONCE):
        some = neurons[start : start + _AT_ONCE]
        rows = dict(zip(some, NeuronRows.of(run, some), strict=True))
        for neuron, values in run.values_of(some):
            yield _line(run, rows[neuron], values, tokens, population)


def _line(
    run: GalleryRun, rows: NeuronRows, values: Mapping[int, pl.Series], tokens: Any, population: str
) -> dict[str, Any]:
    page: Row = rows.page or {}
    of_all = next(row for row in rows.statistics if row["population"] == "all")
    width, heights = of_all["histogram_width"], of_all["histogram"] or []
    return {
        "modelId": run.tokens.provenance["model"],
        "layer": rows.neuron.layer,
        "expert": rows.neuron.expert,
        "index": rows.neuron.neuron,
        "name": str(rows.neuron),
        "dataset": run.tokens.provenance["corpus"],
        "reasons": page["reasons"],
        "n_tokens": of_all["tokens"],
        "frac_nonzero": of_all["active_share"],
        "mean": of_all["mean"],
        "std": of_all["std"],
        "kurtosis": of_all["kurtosis"],
        "minActApprox": _short(of_all["min"]),
        "maxActApprox": _short(of_all["max"]),
        "freq_hist_data_bar_values": [of_all["histogram_low"] + width * (n + 0.5) for n in range(len(heights))],
        "freq_hist_data_bar_heights": heights,
        **_moved(run, "pos", page["top_tokens"], page["top_logits"]),
        **_moved(run, "neg", page["bottom_tokens"], page["bottom_logits"]),
        "correlated_neurons": page["nearest"],
        "correlated_neurons_cosines": page["cosines"],
        "writes_dims": page["writes_dims"],
        "writes_values": page["writes"],
        "activations": [
            _activation(row, values[row["sequence"]], tokens, of_all)
            for row in [*_ranked(rows, population), *(row for row in rows.examples if row["rank"] is not None)]
            if row["sequence"] in values
        ],
    }


def _ranked(rows: NeuronRows, population: str) -> Iterable[Row]:
    own = [row for row in rows.ranked if row["population"] == population]
    return sorted(own, key=lambda row: (row["side"] == "min", row["rank"]))


def _activation(row: Row, along: pl.Series, tokens: Any, of_all: Row) -> dict[str, Any]:
    values = along.to_numpy()
    is_ranked = "side" in row
    return {
        "group": row["side"] if is_ranked else "interval",
        "rank": row["rank"],
        "dataIndex": row["sequence"],
        "tokens": tokens(row["sequence"]),
        "values": [None if value == "nan" else float(value) for value in values.astype(str)],
        "maxValue": _short(np.nanmax(values)),
        "maxValueTokenIndex": int(np.nanargmax(values)),
        "minValue": _short(np.nanmin(values)),
        "qualifyingTokenIndex": row["token"],
        "binMin": _short(of_all["min"]) if is_ranked else row["low"],
        "binMax": _short(of_all["max"]) if is_ranked else row["high"],
        "binContains": _BY_RANK if is_ranked else row["in_interval"] / of_all["tokens"],
    }


def _moved(run: GalleryRun, sign: str, ids: list[int] | None, by: list[float] | None) -> dict[str, Any]:
    known = [run.vocabulary.bytes_of(one) for one in ids or ()]
    spelled = None if ids is None else [None if one is None else one.decode(errors="replace") for one in known]
    return {f"{sign}_str": spelled, f"{sign}_ids": ids, f"{sign}_values": by}


def _tokens(run: GalleryRun, sequence: int) -> list[str]:
    return [token_text(run.texts, run.tokens, sequence, n) or "" for n in range(run.length(sequence))]


def _short(value: float) -> float:
    """A float32 with no more digits than tell it from others."""
    return float(str(np.float32(value)))
