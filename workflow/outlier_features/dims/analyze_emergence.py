"""Rule analyze_emergence: the table of dims, and how each dim with a hit rises, stays and falls over the blocks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlier_features.dims.dims_schema import DIMS, PAIRS
from outlier_features.dims.emergence_schema import EMERGENCE
from outlier_features.dims.steps import steps
from outlier_features.files.columns import READINGS
from outlier_features.files.run_files import RunFiles
from outlier_features.files.tables import write_table
from outlier_features.model.bases import RESID_POST, RESIDUAL, RESIDUAL_BASIS
from outlier_features.populations import POPULATIONS
from outlier_features.rules.kinds import followed, hit_rules
from outlier_features.rules.rule import HitRule
from outlier_features.scan.statistics import SiteStatistics

ONE_SIDED = 0.95


def analyze_emergence(pairs: Path, statistics: Path, dims: Path, emergence: Path) -> None:
    """Write `dims`, a row per population, rule and dim with a hit, and `emergence`, their extremes per block."""
    files = RunFiles()
    file = files.tensors(statistics)
    rows, provenance = files.table(pairs, PAIRS)
    sites = {site: SiteStatistics.read(file, site) for site in provenance["sites"]}
    found = shapes(dims_of(rows, provenance["sequences"]), hit_rules(provenance["rules"]), sites.get(RESID_POST))
    write_table(dims, found, DIMS, provenance)
    basis = {site: one for site, one in sites.items() if site in RESIDUAL_BASIS}
    chosen = found.filter(pl.col("rule").is_in([*followed(provenance["rules"])]))["dim"].unique().sort().to_numpy()
    frames = [
        profiles(site, one, population, chosen)
        for population in POPULATIONS
        for site, one in basis.items()
        if population in one.populations
    ]
    write_table(emergence, pl.concat([pl.DataFrame(schema=EMERGENCE.schema), *frames]), EMERGENCE, provenance)


def dims_of(pairs: pl.DataFrame, sequences: int) -> pl.DataFrame:
    """Pairs put together by dim; shares are means and medians over the sequences with a hit."""
    passing_union = pl.col("union").filter("passes").mean()
    share = pl.max_horizontal(pl.col("positive"), pl.col("negative")) / pl.col("occurrences")
    return (
        pairs.group_by("population", "rule", "sites", "dim")
        .agg(
            pl.col("occurrences", "locations", "positive").sum(),
            *(pl.col(name).mean().alias(f"{name}_mean") for name in READINGS),
            *(pl.col(name).median().alias(f"{name}_median") for name in READINGS),
            sequences=pl.len(),
            sequences_passing=pl.col("passes").sum(),
            first_layer=pl.col("first_layer").min(),
            last_layer=pl.col("last_layer").max(),
            max_abs=pl.col("max_abs").max(),
            kind=pl.when(passing_union >= 0.5)
            .then(pl.lit("persistent"))
            .when(passing_union <= 0.05)
            .then(pl.lit("massive"))
            .when(passing_union.is_not_null())
            .then(pl.lit("mixed")),
        )
        .with_columns(negative=pl.col("occurrences") - pl.col("positive"))
        .with_columns(
            one_sided=share >= ONE_SIDED,
            selected=pl.col("sequences_passing") > 0,
            selected_majority=pl.col("sequences_passing") > sequences / 2,
        )
        .sort("population", "rule", "dim")
    )


def shapes(dims: pl.DataFrame, rules: Mapping[str, HitRule], residual: SiteStatistics | None) -> pl.DataFrame:
    """`dims` with the step-up and step-down blocks on resid_post of the selected ones of d_model; else null."""
    found: list[tuple[int | None, int | None]] = []
    profile = {} if residual is None else {name: residual.max_abs(name) for name in residual.populations}
    for row in dims.select("population", "rule", "dim", "selected").iter_rows(named=True):
        if residual is None or not row["selected"] or rules[row["rule"]].basis != RESIDUAL:
            found.append((None, None))
            continue
        up, down = steps(profile[row["population"]][:, row["dim"]])
        found.append((int(residual.layers[up]), None if down is None else int(residual.layers[down])))
    return dims.with_columns(
        step_up=pl.Series([up for up, _ in found], dtype=pl.UInt16),
        step_down=pl.Series([down for _, down in found], dtype=pl.UInt16),
    )


def profiles(site: str, statistics: SiteStatistics, population: str, dims: np.ndarray[Any, Any]) -> pl.DataFrame:
    """Extremes, mean and RMS of some dims of a site in every block."""
    mean, square = statistics.channel_mean_square(population)
    columns = {
        "max_abs": statistics.max_abs(population),
        "low": statistics.over(population, "low"),
        "high": statistics.over(population, "high"),
        "mean": mean,
        "rms": np.sqrt(square),
    }
    return pl.DataFrame(
        {
            "population": population,
            "site": site,
            "dim": np.repeat(dims, len(statistics.layers)),
            "layer": np.tile(statistics.layers, len(dims)),
            **{name: values[:, dims].T.reshape(-1) for name, values in columns.items()},
        }
    ).select(pl.col(name).cast(dtype) for name, dtype in EMERGENCE.schema.items())
