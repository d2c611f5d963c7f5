"""Rule locate_outliers: rule `location` applied to the sites of a run, with quartiles of all values."""

import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from outlier_features.dump.dumps import DumpRange
from outlier_features.errors import InputError
from outlier_features.extract.activations import Activations
from outlier_features.files.artifacts import holds_sequences, require_equal, require_same_run, write_json
from outlier_features.locate.count_document import comparison_document, count_document
from outlier_features.locate.count_locations import LocationCount, LocationRule, compare_dims, count_locations
from outlier_features.model.bases import RESIDUAL_BASIS
from outlier_features.populations import POPULATIONS, populations_of
from outlier_features.tokens.tokens import Tokens


def locate_outliers(
    chunks: Sequence[Path | DumpRange],
    tokens: Path,
    locations: Path,
    *,
    sites: Sequence[str],
    name: str,
    rule: LocationRule,
    threads: int,
) -> None:
    """Write `locations`: per population and site what the rule `name` counts, and its dims compared between sites.

    chunks   files of activations, in the order of their sequences, or sequences of a dump

    Raises `InputError` where a chunk belongs to another run or the chunks do not cover it.
    """
    run = Tokens.read(tokens)
    every = [Activations.open(chunk, run) for chunk in chunks]
    opened = [chunk for chunk in every if holds_sequences(chunk.provenance)]
    provenance = opened[0].provenance
    covered = 0
    for path, chunk in zip(chunks, opened, strict=False):  # the last may hold no sequence
        require_same_run(provenance, chunk.provenance, str(path))
        require_equal(provenance, chunk.provenance, ("attention",), str(path))
        require_equal({"start": covered}, chunk.provenance, ("start",), str(path))
        covered = chunk.provenance["stop"]
    if covered != len(run.tokens):
        raise InputError(f"{chunks[-1]}: ends before sequence {covered}, expected the last of {len(run.tokens)}")
    present = [site for site in sites if site in opened[0].sites]
    parts = run.parts
    write_json(
        locations,
        {
            "rule": name,
            **{key: provenance[key] for key in ("model", "model_revision", "corpus", "tokens_sha256", "dtype")},
            "threshold": rule.threshold,
            "inclusive": rule.inclusive,
            "layer_share": rule.layer_share,
            "populations": {
                population: _of_population(opened, present, np.isin(parts, POPULATIONS[population]), rule, threads)
                for population in populations_of(parts)
            },
            "package_version": provenance["package_version"],
        },
    )


def _of_population(
    chunks: Sequence[Activations], sites: Sequence[str], members: np.ndarray[Any, Any], rule: LocationRule, threads: int
) -> dict[str, Any]:
    """`members` bool (N, T): the positions of the population."""
    counts: dict[str, LocationCount] = {}
    for site in sites if members.any() else ():
        tensors = [chunk.sites[site] for chunk in chunks]
        size = sum(one.nbytes for one in tensors)
        with tqdm(total=size, desc=f"locate {site}", unit="B", unit_scale=True, delay=3, file=sys.stderr) as bar:
            counts[site] = count_locations(tensors, rule, members=members, threads=threads, progress=bar.update)
    return {
        "sites": {site: count_document(count) for site, count in counts.items()},
        "comparisons": _comparisons(counts),
    }


def _comparisons(counts: Mapping[str, LocationCount]) -> list[dict[str, Any]]:
    """Of every two sites on the basis of the residual stream, where a dim means the same thing."""
    pairs = combinations([site for site in counts if site in RESIDUAL_BASIS], 2)
    return [comparison_document((one, other), compare_dims(counts[one], counts[other])) for one, other in pairs]
