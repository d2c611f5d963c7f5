"""The runs of a comparison that failed: of each the rule, the reason and the log, beside the runs that are compared."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from outlier_features.compare.failures_schema import FAILURES
from outlier_features.files.tables import read_table, write_table

FILE = "failures.parquet"


def write_failures(failed: Mapping[str, Mapping[str, str]], failures: Path) -> None:
    """Write the table `failures` from what the configuration's key `failed` says, by run, `model/corpus`."""
    rows = [{"run": run, "model": run.split("/")[0], "corpus": run.split("/")[1], **why} for run, why in failed.items()]
    write_table(failures, pl.DataFrame(rows, FAILURES.schema), FAILURES, {})


def read_failures(comparison: Path) -> pl.DataFrame:
    """Those of a directory `<results>/comparison`; none where an earlier version of this program wrote it."""
    path = comparison / FILE
    return read_table(path, FAILURES)[0] if path.is_file() else pl.DataFrame(schema=FAILURES.schema)
