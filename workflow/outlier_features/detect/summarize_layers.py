"""Rule summarize_layers: the statistics of all chunks together, and the tables of a site's layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlier_features.detect.layers_schema import DISTRIBUTION, LAYERS, SITE_POSITIONS
from outlier_features.detect.magnitude_bins import distribution_rows
from outlier_features.files.artifacts import holds_sequences
from outlier_features.files.run_files import RunFiles, require_whole
from outlier_features.files.table_writer import TableWriter
from outlier_features.files.tables import write_table
from outlier_features.files.tensorfile import write_tensors
from outlier_features.populations import POPULATIONS
from outlier_features.progress import item_bar
from outlier_features.scan.statistics import SiteStatistics, merge


def summarize_layers(
    chunks: Sequence[Path], statistics: Path, layers: Path, distribution: Path, site_positions: Path
) -> None:
    """Merge the statistics of a run's chunks (in the order of their sequences) and write the tables.

    Raises `InputError` where a chunk belongs to another run or the chunks do not cover it.
    """
    run = RunFiles()
    files = [file for file in map(run.tensors, chunks) if holds_sequences(file.provenance)]
    require_whole([(file.path, file.provenance) for file in files], same=("attention", "stored_as"))
    provenance = {**files[0].provenance, "start": 0, "stop": files[-1].provenance["stop"]}
    del provenance["counted"]  # of the first chunk
    if "threads" in provenance:
        provenance["threads"] = sorted({file.provenance["threads"] for file in files})
    merged = {
        site: merge(SiteStatistics.read(file, site) for file in files)
        for site in item_bar(provenance["sites"], "merge statistics", "site")
    }
    write_tensors(statistics, {k: v for site, one in merged.items() for k, v in one.arrays(site).items()}, provenance)
    found = [(site, one, name) for name in POPULATIONS for site, one in merged.items() if name in one.populations]
    attends = provenance.get("attention_blocks")
    rows = pl.concat([layer_rows(*each) for each in found])
    if attends is not None:
        rows = rows.with_columns(attention=pl.col("layer").is_in(attends))
    write_table(layers, rows, LAYERS, provenance)
    bins = [distribution_rows(site, one, name, provenance["stored_as"][site]) for site, one, name in found]
    write_table(distribution, pl.concat(bins), DISTRIBUTION, provenance)
    with TableWriter(site_positions, SITE_POSITIONS, provenance) as table:
        for each in found:
            table.write(position_rows(*each))


def layer_rows(site: str, statistics: SiteStatistics, population: str) -> pl.DataFrame:
    """A row of the table of layers for each layer of a site; null where the population has no positions."""
    members = POPULATIONS[population]
    per_sequence = statistics.positions[:, members].sum(axis=1)
    present = per_sequence > 0
    positions, dims = statistics.count(population), statistics.pilot.shape[1]
    median = statistics.median[:, present, list(POPULATIONS).index(population)]
    top = statistics.sequence_top(population)[:, present].astype(np.float64)
    low, high = statistics.over(population, "low"), statistics.over(population, "high")
    columns: dict[str, Any] = {
        "population": population,
        "site": site,
        "layer": statistics.layers,
        "occurrences": (statistics.over(population, "positive") + statistics.over(population, "negative")).sum(axis=1),
        "dims_hit": (np.maximum(high, -low) >= 6).sum(axis=1),
        "positions_hit": statistics.over(population, "positions_hit"),
        "positions": positions,
    }
    if positions:
        columns |= {f"top{k + 1}": top[:, :, k].mean(axis=1) for k in range(3)}
        columns |= {
            "median": median.mean(axis=1),
            "mean": statistics.absolute[:, :, members].sum(axis=(1, 2)) / (positions * dims),
            "max": statistics.max_abs(population).max(axis=1),
            "rms": np.sqrt(statistics.square[:, :, members].sum(axis=(1, 2)) / (positions * dims)),
            "kurtosis_flat_excess": statistics.flat_kurtosis(population),
            "kurtosis_token": statistics.token_kurtosis(population),
            "kurtosis_channel_rms": statistics.channel_kurtosis(population),
        }
    frame = pl.DataFrame(columns)
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in LAYERS.schema.items() if name not in columns]
    return frame.with_columns(missing).select(
        pl.col(name).fill_nan(None).cast(dtype) if dtype == pl.Float64 else pl.col(name).cast(dtype)
        for name, dtype in LAYERS.schema.items()
    )


def position_rows(site: str, statistics: SiteStatistics, population: str) -> pl.DataFrame:
    """A row of the table of positions for each layer of a site and each position that some sequence has."""
    counts, moments = statistics.position_moments(population)
    tokens, layers = np.flatnonzero(counts), len(statistics.layers)
    mean, square = moments[:, tokens].reshape(-1, 2).T
    return pl.DataFrame(
        {
            "layer": np.repeat(statistics.layers, len(tokens)),
            "token": np.tile(tokens, layers),
            "sequences": np.tile(counts[tokens], layers),
            "mean": mean,
            "mean_square": square,
        }
    ).with_columns(population=pl.lit(population), site=pl.lit(site))
