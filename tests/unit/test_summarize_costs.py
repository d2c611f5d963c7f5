"""Costs are the sums of Snakemake's benchmark files."""

import polars as pl
import pytest

from outlier_features.errors import InputError
from outlier_features.run.summarize_costs import read_costs, summarize_costs

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time"


def benchmark(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEADER, *lines]) + "\n")


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "benchmarks"
    benchmark(folder / "extract/a/text/0-3.tsv", "10.5\t0:00:10\t200.5\t9\t9\t9\t3.0\t4.5\t99\t12.0")
    benchmark(folder / "extract/a/text/4-7.tsv", "2.25\t0:00:02\t300.0\t9\t9\t9\t1.0\t0.5\t99\t2.5")
    benchmark(folder / "extract/b/text/0-3.tsv", "0.25\t0:00:00\tNA\tNA\tNA\tNA\tNA\tNA\tNA\tNA")
    benchmark(folder / "report.tsv", "1.0\t0:00:01\tNA\tNA\tNA\tNA\tNA\tNA\tNA\tNA")
    benchmark(folder / "other.tsv", "9\t0:00:09\t1\t1\t1\t1\t1\t1\t1\t1", "3.0\t0:00:03\t50.0\t9\t9\t9\t-\t-\t9\t1.5")
    for name, size in (("a", 100), ("b", 11)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.parquet").write_bytes(b"x" * size)
    (tmp_path / "a/figures").mkdir()
    (tmp_path / "a/figures/one.html").write_bytes(b"x" * 7)
    return tmp_path


def test_jobs_are_added_up_by_rule(results):
    outputs = {"extract": [f"{results}/*/x.parquet", f"{results}/a/x.parquet"], "report": [f"{results}/*/figures"]}
    rows = {row["rule"]: row for row in read_costs(results / "benchmarks", outputs).to_dicts()}
    assert list(rows) == ["extract", "other", "report"]
    assert rows["extract"] == {
        "rule": "extract", "jobs": 3, "seconds": 13.0, "seconds_max": 10.5, "measured": 2, "cpu_seconds": 14.5,
        "max_rss": 300.0, "read": 4.0, "written": 5.0, "output_bytes": 111,
    }  # fmt: skip
    assert rows["report"] == {
        "rule": "report", "jobs": 1, "seconds": 1.0, "seconds_max": 1.0, "measured": 0, "cpu_seconds": None,
        "max_rss": None, "read": None, "written": None, "output_bytes": 7,
    }  # fmt: skip
    other = rows["other"]  # its last run; the system tells no bytes; its outputs are gone
    assert (other["seconds"], other["cpu_seconds"], other["read"], other["output_bytes"]) == (3.0, 1.5, None, None)


def test_the_csv_has_the_rows(results):
    summarize_costs(results / "benchmarks", {}, results / "costs.csv")
    assert pl.read_csv(results / "costs.csv").select("rule", "jobs", "seconds").rows() == [
        ("extract", 3, 13.0), ("other", 1, 3.0), ("report", 1, 1.0),
    ]  # fmt: skip


def test_no_benchmarks_are_no_rows(tmp_path):
    assert read_costs(tmp_path / "benchmarks", {}).is_empty()


@pytest.mark.parametrize(
    "text", ["", "s\n", f"{HEADER}\n1.0\t0:00:01\n", "a\tb\n1\t2\n", f"{HEADER}\n" + "x\t" * 9 + "x\n"]
)
def test_what_is_no_benchmark_is_named(tmp_path, text):
    (tmp_path / "one.tsv").write_text(text)
    with pytest.raises(InputError, match=r"one\.tsv: expected a benchmark of Snakemake"):
        read_costs(tmp_path, {})
