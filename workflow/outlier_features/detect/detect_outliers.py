"""Rule detect_outliers: hits and statistics of one chunk of activations."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from tqdm import tqdm

from outlier_features.dump.dumps import DumpRange
from outlier_features.extract.activations import Activations
from outlier_features.files.artifacts import require_equal, require_same_run, require_sequences
from outlier_features.files.sealed_parquet import sealing
from outlier_features.files.tables import HITS, to_arrow
from outlier_features.files.tensorfile import write_tensors
from outlier_features.populations import EXCLUDED
from outlier_features.scan.scan import Hits, pilot_means, scan
from outlier_features.tokens.tokens import Tokens


def detect_outliers(
    activations: Path | DumpRange,
    first_chunk: Path | DumpRange,
    tokens: Path,
    hits: Mapping[str, Path],
    statistics: Path,
    *,
    floors: Mapping[str, float],
    max_density: float,
    threads: int,
) -> None:
    """Scan the activations of a chunk, site by site.

    activations   a file with tensors `{site}.{layer}` of shape (n, T, H), or sequences of a dump
    first_chunk   the run's first such file or sequences: the mean of the first sequence is the pilot of all chunks
    hits          the Parquet file to write for each site; empty where the model lacks the site
    floors        per site, the smallest abs(x) that is a hit
    max_density   share of a site's values that may be hits

    Raises `InputError` on activations that are not finite, too dense, or of another run.
    """
    run = Tokens.read(tokens)
    chunk, first = Activations.open(activations, run), Activations.open(first_chunk, run)
    provenance = chunk.provenance
    require_same_run(provenance, first.provenance, str(first_chunk))
    require_equal({"start": 0}, first.provenance, ("start",), str(first_chunk))
    if isinstance(activations, Path):
        require_sequences(provenance, activations)
    parts = run.parts
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    with ExitStack() as outputs:
        for site, path in hits.items():
            writer = outputs.enter_context(HitsWriter(path, {**provenance, "site": site, "floor": floors[site]}))
            if site not in chunk.sites:
                continue
            tensors = chunk.sites[site]
            size = tensors.shape[0]
            with tqdm(total=size, desc=f"detect {site}", unit="seq", mininterval=2, file=sys.stderr) as bar:
                site_statistics = scan(
                    tensors,
                    parts[provenance["start"] : provenance["stop"]],
                    pilot_means(first.sites[site], parts[0]),
                    floors[site],
                    on_hits=writer.write,
                    max_density=max_density,
                    threads=threads,
                    progress=lambda done, bar=bar: bar.update(done - bar.n),  # type: ignore[misc]
                )
            arrays |= site_statistics.arrays(site)
        # By the dtype alone nobody could read the histogram of a site: a dump's sites may differ in theirs.
        stored_as = {site: tensors.dtype for site, tensors in chunk.sites.items() if site in hits}
        facts = {"floors": {site: floors[site] for site in hits}, "stored_as": stored_as}
        write_tensors(statistics, arrays, {**provenance, **facts})


class HitsWriter:
    """Writes hits to a Parquet file as they come."""

    def __init__(self, path: Path, provenance: Mapping[str, Any]):
        self._sealing, self._provenance = sealing(path), provenance

    def __enter__(self) -> "HitsWriter":
        empty = to_arrow(pl.DataFrame(schema=HITS.schema), HITS, self._provenance)
        self._writer = pq.ParquetWriter(
            self._sealing.__enter__(),
            empty.schema,
            compression="zstd",
            use_dictionary=False,
            write_page_checksum=True,
        )
        return self

    def write(self, hits: Hits) -> None:
        if len(hits.value):
            columns = {name: getattr(hits, name) for name in ("sequence", "layer", "token", "dim", "value")}
            frame = pl.DataFrame({**columns, "excluded": hits.part == EXCLUDED}).with_columns(
                pl.col("sequence") + self._provenance["start"]
            )
            self._writer.write_table(to_arrow(frame, HITS, self._provenance))

    def __exit__(self, *error: Any) -> None:
        self._writer.close()
        self._sealing.__exit__(*error)
