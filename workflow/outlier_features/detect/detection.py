"""The hits and statistics of a chunk, from sequences that are handed over some at a time, wherever they come from."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from outlier_features.detect.dense_rows import DenseRows, Rows, groups_of, rows_frame
from outlier_features.detect.hits_schema import COUNTED_PAIRS, COUNTED_POSITIONS, HITS, SCALED_HITS
from outlier_features.detect.scales_of_site import scales_of_site
from outlier_features.extract.activations import Activations
from outlier_features.files.table_writer import TableWriter
from outlier_features.files.tensorfile import write_tensors
from outlier_features.populations import EXCLUDED, populations_of
from outlier_features.scan.scan import Hits, ScaledHits, SiteScan, pilot_means
from outlier_features.scan.site_tensors import SiteTensors
from outlier_features.scan.statistics import Array
from outlier_features.tokens.tokens import Tokens

_ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class DetectionFiles:
    """What is written: by site the table of its hits, empty where the model lacks the site; and the other files."""

    hits: Mapping[str, Path]
    scaled_hits: Path
    counted_pairs: Path
    counted_positions: Path
    statistics: Path


@dataclass(frozen=True)
class DetectionSettings:
    """What is looked for.

    floors        per site, the smallest abs(x) that is a hit
    max_density   share of a sequence's values at a site that may be hits and listed
    counted       at which thresholds hits are counted where they are more, see `rules.configured.counted_at`
    scaled        per site and scale (see `scan.scales`), from what multiple of the scale on values are listed
    """

    floors: Mapping[str, float]
    max_density: float
    counted: Mapping[str, Any]
    scaled: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def detection_of(job: Any) -> tuple[DetectionFiles, DetectionSettings]:
    """What a job of the workflow, Snakemake's object in its script, writes and looks for."""
    params, output = job.params, job.output
    return (
        DetectionFiles(
            {site: Path(output[site]) for site in params.floors},
            *(Path(output[name]) for name in ("scaled_hits", "counted_pairs", "counted_positions", "statistics")),
        ),
        DetectionSettings(params.floors, params.max_density, params.counted, params.scaled),
    )


Pilots = Mapping[str, Array]


def pilots_of(sites: Mapping[str, SiteTensors], parts: Array) -> Pilots:
    """By site, the means of the run's first sequence, which are the pilots of all its chunks: the first of `sites`.

    parts   uint8 (T,): of that sequence
    """
    return {site: pilot_means(tensors, parts) for site, tensors in sites.items()}


@contextmanager
def detecting(
    chunk: Activations, pilots: Pilots, run: Tokens, settings: DetectionSettings, files: DetectionFiles, threads: int
) -> Iterator["Detection"]:
    """Hands out the detection of a chunk, whose `add` wants all its sequences in order; in the end files are written.

    chunk   sites (of any of its sequences), provenance and gains

    The provenance of `scaled_hits` has `scaled`, the sites and scales that are there of those, and why others are not
    (`without_scale`), by site and layer the dims that are left out for their gains (`gains_left_out`); that of the
    statistics also the sequences with too many hits (`unlisted`), by site and scale.

    Raises `InputError` on activations that are not finite.
    """
    with ThreadPoolExecutor(threads) as pool, ExitStack() as outputs:
        detection = Detection(chunk, pilots, run, settings, files, pool, threads, outputs)
        yield detection
        detection.finish()


class Detection:
    """See `detecting`."""

    def __init__(
        self,
        chunk: Activations,
        pilots: Pilots,
        run: Tokens,
        settings: DetectionSettings,
        files: DetectionFiles,
        pool: ThreadPoolExecutor,
        threads: int,
        outputs: ExitStack,
    ):
        self._chunk, self._settings, self._files, self._pool = chunk, settings, files, pool
        self._start = chunk.provenance["start"]
        self._parts = run.parts[self._start : chunk.provenance["stop"]]
        self._populations = populations_of(run.parts)
        present = [site for site in files.hits if site in chunk.sites]
        wanted = settings.scaled
        scales = {site: scales_of_site(chunk, site, wanted[site]) for site in present if site in wanted}
        self._scans = {
            site: SiteScan(
                chunk.sites[site],
                self._parts,
                pilots[site],
                settings.floors[site],
                pool,
                threads,
                start=self._start,
                max_density=settings.max_density,
                massive=settings.counted["listed"].get(site),
                scaled=scales[site].scales if site in scales else {},
            )
            for site in present
        }
        self._groups = groups_of(present, settings.floors, settings.counted)
        self._unlisted: dict[str, dict[str, list[int]]] = {}
        self._about_scales = {
            "scaled": {site: {name: one.k for name, one in of.scales.items()} for site, of in scales.items()},
            "without_scale": {site: of.absent for site, of in scales.items() if of.absent},
            "gains_left_out": {site: of.left_out for site, of in scales.items() if of.left_out},
        }
        provenance = chunk.provenance
        self._hits = {
            site: outputs.enter_context(
                TableWriter(path, HITS, {**provenance, "site": site, "floor": settings.floors[site]})
            )
            for site, path in files.hits.items()
        }
        self._scaled_hits = outputs.enter_context(
            TableWriter(files.scaled_hits, SCALED_HITS, {**provenance, **self._about_scales})
        )
        self._pairs = outputs.enter_context(TableWriter(files.counted_pairs, COUNTED_PAIRS))
        self._positions = outputs.enter_context(TableWriter(files.counted_positions, COUNTED_POSITIONS))
        self._waiting: tuple[list[Rows], list[Rows]] = ([], [])
        self._done = 0

    def add(self, sites: Mapping[str, SiteTensors], first: int, last: int) -> None:
        """The next sequences of the chunk, which are `first` to before `last` of these tensors."""
        of_scales = []
        for site, scanning in self._scans.items():
            hits, scaled = scanning.add(sites[site], first, last)
            self._hits[site].write(hits_frame(hits, self._start))
            for one in scaled:
                of_scales.append(scaled_frame(one, site, self._start))
                if len(one.unlisted):
                    known = self._unlisted.setdefault(site, {}).setdefault(one.scale, [])
                    known += (self._start + one.unlisted).tolist()
        if of_scales:  # whatever was handed over together: by sequence first
            self._scaled_hits.write(pl.concat(of_scales).sort("sequence", maintain_order=True))
        self._count_dense({site: sites[site].rows(first, last) for site in self._scans})
        self._done += last - first

    def _count_dense(self, sites: Mapping[str, SiteTensors]) -> None:
        """Count the hits of the sequences (all of `sites`) that have too many to be listed at some site."""
        stop = self._done + len(next(iter(sites.values())).lengths) if sites else self._done
        listed = {site: scanning.listed(self._done, stop) for site, scanning in self._scans.items()}
        floors = self._settings.floors
        dense = DenseRows(sites, self._parts[self._done : stop], listed, self._groups, floors, self._populations)
        first = self._start + self._done
        for pairs, positions in self._pool.map(lambda n: dense.of(n, first + n), dense.sequences):
            self._waiting[0].extend(pairs)
            self._waiting[1].extend(positions)
        self._write_counts(dense, _ROWS_AT_ONCE)

    def _write_counts(self, dense: DenseRows, most: int) -> None:
        """Write the rows that wait, if they are as many."""
        tables = ((self._pairs, dense.pair_labels), (self._positions, dense.position_labels))
        for (writer, labels), waiting in zip(tables, self._waiting, strict=True):
            if waiting and sum(len(rows["label"]) for rows in waiting) >= most:
                writer.write(rows_frame(waiting, labels))
                waiting.clear()

    def finish(self) -> None:
        """Write what depends on all sequences."""
        chunk, settings = self._chunk, self._settings
        found = {site: scanning.statistics() for site, scanning in self._scans.items()}
        sites = {site: chunk.sites[site] for site in found}
        self._write_counts(DenseRows(sites, self._parts, {}, self._groups, settings.floors, self._populations), 1)
        facts = {
            "floors": {site: settings.floors[site] for site in self._files.hits},
            "counted": {"at": settings.counted, "dense": [name for name, one in found.items() if not one.listed.all()]},
            **self._about_scales,
            "unlisted": self._unlisted,
        }
        self._pairs.provenance = self._positions.provenance = {**chunk.provenance, **facts}
        # By the dtype alone nobody could read the histogram of a site: a dump's sites may differ in theirs.
        stored_as = {site: chunk.sites[site].dtype for site in found}
        arrays = {name: array for site, one in found.items() for name, array in one.arrays(site).items()}
        # What was asked for, even where a scale is not known.
        more = {"stored_as": stored_as, "scaled_at": settings.scaled}
        write_tensors(self._files.statistics, arrays, {**chunk.provenance, **facts, **more})


def hits_frame(hits: Hits, start: int) -> pl.DataFrame:
    """Hits as rows of the table; `start` is the run's number of the chunk's first sequence."""
    columns = {name: getattr(hits, name) for name in ("sequence", "layer", "token", "dim", "value")}
    return pl.DataFrame({**columns, "excluded": hits.part == EXCLUDED}).with_columns(pl.col("sequence") + start)


def scaled_frame(hits: ScaledHits, site: str, start: int) -> pl.DataFrame:
    """Hits as rows of the table of scaled hits."""
    return hits_frame(hits, start).with_columns(
        pl.Series("scaled", hits.scaled), site=pl.lit(site), scale=pl.lit(hits.scale)
    )
