"""Rule locate_outliers: rule `location` applied to the sites of a run, with quartiles of all values."""

import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from outlier_features.dump.dumps import DumpRange
from outlier_features.extract.activations import Activations
from outlier_features.files.artifacts import holds_sequences, write_json
from outlier_features.files.run_files import require_whole
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
    every = [(where, Activations.open(where, run)) for where in chunks]
    held = [(where, chunk) for where, chunk in every if holds_sequences(chunk.provenance)]
    require_whole([(where, chunk.provenance) for where, chunk in held], same=("attention",))
    opened = [chunk for _, chunk in held]
    provenance = opened[0].provenance
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
