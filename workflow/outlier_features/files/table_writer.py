"""Tables whose rows come some at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from outlier_features.files.sealed_parquet import sealing
from outlier_features.files.tables import Table, provenance_metadata, schema_of, to_arrow


class TableWriter:
    """Writes rows to a Parquet file; it takes its name when the block ends without an error.

    provenance   written at the end, so that it may be set until then
    """

    def __init__(self, path: Path, table: Table, provenance: Mapping[str, Any] | None = None):
        self._sealing, self._table = sealing(path), table
        self.provenance = provenance or {}

    def __enter__(self) -> "TableWriter":
        self._writer = pq.ParquetWriter(
            self._sealing.__enter__(),
            schema_of(self._table),
            compression="zstd",
            use_dictionary=False,
            write_page_checksum=True,
        )
        return self

    def write(self, frame: pl.DataFrame) -> None:
        if len(frame):
            self._writer.write_table(to_arrow(frame, self._table))

    def __exit__(self, *error: Any) -> None:
        self._writer.add_key_value_metadata(provenance_metadata(self.provenance))
        self._writer.close()
        self._sealing.__exit__(*error)
