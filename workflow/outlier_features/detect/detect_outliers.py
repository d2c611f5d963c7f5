"""Rule detect_outliers: hits and statistics of one chunk of activations."""

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl
import pyarrow.parquet as pq
from tqdm import tqdm

from outlier_features.detect.dense_rows import DenseRows, Rows, groups_of, rows_frame
from outlier_features.detect.hits_schema import COUNTED_PAIRS, COUNTED_POSITIONS, HITS, SCALED_HITS
from outlier_features.detect.scales_of_site import scales_of_site
from outlier_features.dump.dumps import DumpRange
from outlier_features.extract.activations import Activations
from outlier_features.files.artifacts import require_equal
from outlier_features.files.sealed_parquet import sealing
from outlier_features.files.tables import Table, to_arrow
from outlier_features.files.tensorfile import write_tensors
from outlier_features.populations import EXCLUDED, populations_of
from outlier_features.progress import item_bar
from outlier_features.scan.scan import Hits, ScaledHits, pilot_means, scan
from outlier_features.scan.statistics import SiteStatistics
from outlier_features.tokens.tokens import Tokens

_ROWS_AT_ONCE = 1 << 18


def detect_outliers(
    activations: Path | DumpRange,
    first_chunk: Path | DumpRange,
    tokens: Path,
    hits: Mapping[str, Path],
    pairs: Path,
    positions: Path,
    scaled_hits: Path,
    statistics: Path,
    *,
    floors: Mapping[str, float],
    max_density: float,
    counted: Mapping[str, Any],
    scaled: Mapping[str, Mapping[str, float]],
    gain_keys: Mapping[str, str] = MappingProxyType({}),
    threads: int,
) -> None:
    """Scan the activations of a chunk, site by site; count the hits of sequences that have too many to be listed.

    activations   a file with tensors `{site}.{layer}` of shape (n, T, H), or sequences of a dump
    first_chunk   the run's first such file or sequences: the mean of the first sequence is the pilot of all chunks
    hits          the Parquet file to write for each site; empty where the model lacks the site
    pairs         the table `counted_pairs` to write
    positions     the table `counted_positions` to write
    scaled_hits   the table `scaled_hits` to write, of all sites
    floors        per site, the smallest abs(x) that is a hit
    max_density   share of a sequence's values at a site that may be hits and listed
    counted       at which thresholds hits are counted where they are more, see `rules.configured.counted_at`
    scaled        per site and scale (see `scan.scales`), from what multiple of the scale on values are listed
    gain_keys     of a dump, its gains' keys, by site or by another name; empty: those under `rmsnorm_gammas/<module>`

    The provenance of `scaled_hits` has `scaled`, the sites and scales that are there of those, and why others are not
    (`without_scale`), by site and layer the dims that are left out for their gains (`gains_left_out`); that
    of the statistics also the sequences with too many hits (`unlisted`), by site and scale.

    Raises `InputError` on activations that are not finite or of another run.
    """
    run = Tokens.read(tokens)
    chunk, first = Activations.open(activations, run, gain_keys), Activations.open(first_chunk, run)
    provenance = chunk.provenance
    require_equal({"start": 0}, first.provenance, ("start",), str(first_chunk))
    parts = run.parts[provenance["start"] : provenance["stop"]]
    found: dict[str, SiteStatistics] = {}
    scales = {site: scales_of_site(chunk, site, dict(scaled[site])) for site in chunk.sites if site in scaled}
    about_scales = {
        "scaled": {site: {name: one.k for name, one in of.scales.items()} for site, of in scales.items()},
        "without_scale": {site: of.absent for site, of in scales.items() if of.absent},
        "gains_left_out": {site: of.left_out for site, of in scales.items() if of.left_out},
    }
    unlisted: dict[str, dict[str, list[int]]] = {}
    with ExitStack() as outputs:
        scaled_writer = outputs.enter_context(TableWriter(scaled_hits, SCALED_HITS, {**provenance, **about_scales}))

        def write_scaled(site: str, hits: ScaledHits) -> None:
            scaled_writer.write(scaled_frame(hits, site, provenance["start"]))
            if len(hits.unlisted):
                known = unlisted.setdefault(site, {}).setdefault(hits.scale, [])
                known += (provenance["start"] + hits.unlisted).tolist()

        for site, path in hits.items():
            about = {**provenance, "site": site, "floor": floors[site]}
            writer = outputs.enter_context(TableWriter(path, HITS, about))
            if site not in chunk.sites:
                continue
            tensors = chunk.sites[site]
            size = tensors.shape[0]
            with tqdm(total=size, desc=f"detect {site}", unit="seq", mininterval=2, file=sys.stderr) as bar:
                found[site] = scan(
                    tensors,
                    parts,
                    pilot_means(first.sites[site], run.parts[0]),
                    floors[site],
                    on_hits=lambda hits, writer=writer: writer.write(hits_frame(hits, provenance["start"])),  # type: ignore[misc]
                    max_density=max_density,
                    massive=counted["listed"].get(site),
                    scaled=scales[site].scales if site in scales else {},
                    on_scaled_hits=partial(write_scaled, site),
                    threads=threads,
                    progress=lambda done, bar=bar: bar.update(done - bar.n),  # type: ignore[misc]
                )
        dense = DenseRows(
            {site: chunk.sites[site] for site in found},
            parts,
            {site: one.listed.astype(bool) for site, one in found.items()},
            groups_of(list(found), floors, counted),
            floors,
            populations_of(run.parts),
        )
        facts = {
            "floors": {site: floors[site] for site in hits},
            "counted": {"at": counted, "dense": [site for site, one in found.items() if not one.listed.all()]},
            **about_scales,
            "unlisted": unlisted,
        }
        pair_writer = outputs.enter_context(TableWriter(pairs, COUNTED_PAIRS, {**provenance, **facts}))
        position_writer = outputs.enter_context(TableWriter(positions, COUNTED_POSITIONS, {**provenance, **facts}))
        _write_counts(dense, provenance["start"], threads, pair_writer, position_writer)
        # By the dtype alone nobody could read the histogram of a site: a dump's sites may differ in theirs.
        stored_as = {site: tensors.dtype for site, tensors in chunk.sites.items() if site in hits}
        arrays = {name: array for site, one in found.items() for name, array in one.arrays(site).items()}
        more = {"stored_as": stored_as, "scaled_at": scaled}  # asked for, even where a scale is not known
        write_tensors(statistics, arrays, {**provenance, **facts, **more})


def _write_counts(dense: DenseRows, start: int, threads: int, pairs: "TableWriter", positions: "TableWriter") -> None:
    """Write the rows of each dense sequence, in order, many at a time; `start` is the chunk's first sequence."""
    sequences = dense.sequences
    tables: list[tuple[TableWriter, pl.DataFrame, list[Rows]]] = [
        (pairs, dense.pair_labels, []),
        (positions, dense.position_labels, []),
    ]
    with ThreadPoolExecutor(threads) as pool:
        for first in item_bar(range(0, len(sequences), threads), "count hits", "step"):
            batch = sequences[first : first + threads]
            for made in pool.map(lambda n: dense.of(n, start + n), batch):
                for (_, _, waiting), rows in zip(tables, made, strict=True):
                    waiting += rows
            last = batch[-1] == sequences[-1]
            for writer, labels, waiting in tables:
                if waiting and (last or sum(len(rows["label"]) for rows in waiting) >= _ROWS_AT_ONCE):
                    writer.write(rows_frame(waiting, labels))
                    waiting.clear()


def hits_frame(hits: Hits, start: int) -> pl.DataFrame:
    """Hits as rows of the table; `start` is the run's number of the chunk's first sequence."""
    columns = {name: getattr(hits, name) for name in ("sequence", "layer", "token", "dim", "value")}
    return pl.DataFrame({**columns, "excluded": hits.part == EXCLUDED}).with_columns(pl.col("sequence") + start)


def scaled_frame(hits: ScaledHits, site: str, start: int) -> pl.DataFrame:
    """Hits as rows of the table of scaled hits."""
    return hits_frame(hits, start).with_columns(
        pl.Series("scaled", hits.scaled), site=pl.lit(site), scale=pl.lit(hits.scale)
    )


class TableWriter:
    """Writes the rows of a table to a Parquet file as they come."""

    def __init__(self, path: Path, table: Table, provenance: Mapping[str, Any]):
        self._sealing, self._table, self._provenance = sealing(path), table, provenance

    def __enter__(self) -> "TableWriter":
        empty = to_arrow(pl.DataFrame(schema=self._table.schema), self._table, self._provenance)
        self._writer = pq.ParquetWriter(
            self._sealing.__enter__(),
            empty.schema,
            compression="zstd",
            use_dictionary=False,
            write_page_checksum=True,
        )
        return self

    def write(self, frame: pl.DataFrame) -> None:
        if len(frame):
            self._writer.write_table(to_arrow(frame, self._table, self._provenance))

    def __exit__(self, *error: Any) -> None:
        self._writer.close()
        self._sealing.__exit__(*error)
