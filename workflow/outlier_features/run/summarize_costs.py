"""Rule summarize_costs: what each rule took, from the benchmark files that Snakemake writes after each job."""

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from outlier_features.errors import DamagedFile
from outlier_features.files.artifacts import replacing
from outlier_features.files.export_tables import write_csv
from outlier_features.run.costs_schema import COSTS

_COLUMNS = ("s", "cpu_time", "max_rss", "io_in", "io_out")


def summarize_costs(benchmarks: Path, outputs: Mapping[str, Sequence[str]], costs: Path) -> None:
    """Write `costs`, the rows of `read_costs` as CSV."""
    with replacing(costs) as temporary, temporary.open("wb") as file:
        write_csv(read_costs(benchmarks, outputs), file, header=True)


def read_costs(benchmarks: Path, outputs: Mapping[str, Sequence[str]]) -> pl.DataFrame:
    """The table `costs` of the jobs that have run so far, the rule that took longest first.

    benchmarks   directory with `<rule>.tsv` or `<rule>/.../*.tsv`
    outputs      per rule, patterns of its outputs' paths, with `*` for what varies

    A job that ends before Snakemake looks at it has a time only (NA elsewhere). Raises `InputError` where a file is not
    a benchmark.
    """
    jobs = [
        {"rule": path.relative_to(benchmarks).parts[0].removesuffix(".tsv"), **read_benchmark(path)}
        for path in sorted(benchmarks.rglob("*.tsv"))
    ]
    frame = pl.DataFrame(jobs, schema={"rule": pl.String, **dict.fromkeys(_COLUMNS, pl.Float64)})

    def total(name: str) -> pl.Expr:
        """Null where no job was measured."""
        return pl.when(pl.col(name).is_not_null().any()).then(pl.col(name).sum().round(4))

    return (
        frame.group_by("rule")
        .agg(
            jobs=pl.len(),
            seconds=total("s"),
            seconds_max=pl.col("s").max(),
            measured=pl.col("cpu_time").is_not_null().sum(),
            cpu_seconds=total("cpu_time"),
            max_rss=pl.col("max_rss").max(),
            read=total("io_in"),
            written=total("io_out"),
        )
        .with_columns(
            output_bytes=pl.col("rule").map_elements(lambda rule: _size(outputs.get(rule, ())), return_dtype=pl.Int64)
        )
        .sort(["seconds", "rule"], descending=[True, False])
        .pipe(COSTS.cast)
    )


def read_benchmark(path: Path) -> dict[str, float | None]:
    """The last line of a benchmark file, that of the job's last run; raises `InputError` where it is none."""
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        found = dict(zip(header.split("\t"), lines[-1].split("\t"), strict=True))
        return {name: _number(found[name]) for name in _COLUMNS}
    except (OSError, ValueError, LookupError) as error:
        raise DamagedFile(path, f"expected a benchmark of Snakemake, found {type(error).__name__}: {error}") from error


def _number(text: str) -> float | None:
    """Snakemake writes NA for what was not measured, and - for what the system does not tell."""
    return None if text in ("NA", "-") else float(text)


def _size(patterns: Sequence[str]) -> int | None:
    """Bytes of the files that match, and of those in directories that do; None where there is none."""
    found: dict[str, int] = {}
    for pattern in patterns:
        for place in glob.glob(pattern):
            inside: list[Any] = [place] if os.path.isfile(place) else [*Path(place).rglob("*")]
            found |= {str(file): os.path.getsize(file) for file in inside if os.path.isfile(file)}
    return sum(found.values()) if found else None
