"""Dims that two runs have in common, against sets."""

import json
from pathlib import Path

import polars as pl
import pytest

from fake_run import FakeRun
from outlier_features.command.main import main
from outlier_features.compare.differences import differences
from outlier_features.dims.compare_runs import compare_runs
from outlier_features.dims.comparison_schema import COMPARED_DIMS, COMPARISON
from outlier_features.dims.dims_schema import DIMS
from outlier_features.errors import InputError
from outlier_features.files.artifacts import read_json, write_json
from outlier_features.files.tables import read_table, write_table


def located(folder: Path, counts: dict[int, int]) -> None:
    dims = [{"dim": dim, "count": count} for dim, count in counts.items()]
    write_json(folder / "locations.json", {"populations": {"all": {"sites": {"attn_norm": {"dims": dims}}}}})


@pytest.fixture
def runs(tmp_path):
    one = FakeRun(outliers=(5, 6), massive=(7,)).write(tmp_path / "a/text")
    other = FakeRun(outliers=(6, 8), massive=(9,)).write(tmp_path / "b/text")
    located(one, {3: 50, 4: 20, 1: 9})
    located(other, {4: 30, 3: 10, 2: 1, 0: 1})
    return one, other


def test_jaccard_and_smaller_counts(runs, tmp_path):
    compare_runs(runs, tmp_path / "dims.parquet", tmp_path / "common.parquet")
    rows = {
        (row["population"], row["rule"]): row for row in read_table(tmp_path / "dims.parquet", COMPARISON)[0].to_dicts()
    }
    at = rows["all", "location"]
    assert (at["first"], at["second"], at["dims_first"], at["dims_second"], at["common"]) == (
        "a/text",
        "b/text",
        3,
        4,
        2,
    )
    assert at["jaccard"] == 2 / 5
    assert rows["all", "dettmers"]["jaccard"] == 1 / 3
    assert rows["all", "massive"]["common"] == 0
    compared = read_table(tmp_path / "common.parquet", COMPARED_DIMS)[0]
    located = compared.filter(rule="location").select("dim", "occurrences_first", "occurrences_second")
    assert located.rows() == [(4, 20, 30), (3, 50, 10), (1, 9, 0), (0, 0, 1), (2, 0, 1)]
    # Every dim that either selects, with what each run has of it: also the hits of a run that does not select it.
    found = compared.filter(rule="dettmers", population="all")
    assert found["dim"].to_list()[0] == 6 and {*found["dim"]} == {5, 6, 8}
    for which, run in zip(("first", "second"), runs, strict=True):
        own = pl.read_parquet(run / "dims.parquet").filter(population="all", rule="dettmers")
        for row in found.iter_rows(named=True):
            mine = own.filter(dim=row["dim"]).to_dicts()
            expected = (mine[0]["selected"], mine[0]["occurrences"], mine[0]["max_abs"]) if mine else (False, 0, None)
            assert tuple(row[f"{name}_{which}"] for name in ("selected", "occurrences", "max_abs")) == expected


def test_runs_that_select_nothing_have_no_index(tmp_path):
    folders = [FakeRun(outliers=(), massive=()).write(tmp_path / name / "text") for name in "ab"]
    compare_runs(folders, tmp_path / "dims.parquet", tmp_path / "common.parquet")
    rows = read_table(tmp_path / "dims.parquet", COMPARISON)[0].filter(rule="dettmers")
    assert len(rows) and rows["jaccard"].null_count() == len(rows)


def test_a_rule_that_selects_nothing_in_one_run_is_a_rule_in_common(tmp_path, capsys):
    """Where a run has no hit by a rule, its tables do not name it."""
    runs = [
        FakeRun(model="m", outliers=(5,), massive=(7,)).write(tmp_path / "m/one"),
        FakeRun(model="m", outliers=(5,), massive=(), hits=()).write(tmp_path / "m/two"),
    ]
    assert "massive" not in pl.read_parquet(runs[1] / "dims.parquet")["rule"]
    compare_runs(runs, tmp_path / "dims.parquet", tmp_path / "dim_by_dim.parquet")
    rows = read_table(tmp_path / "dims.parquet", COMPARISON)[0].filter(rule="massive", population="all").to_dicts()
    assert [(row["sites"], row["dims_first"], row["dims_second"], row["common"]) for row in rows] == [
        ("resid_post", 1, 0, 0)
    ]
    assert main(["compare", *map(str, runs), "--rule", "massive", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["massive resid_post all"]["dims"] == [1, 0]
    [dim] = found["massive resid_post all"]["dims_of_either"]
    assert (dim["dim"], dim["selected_first"], dim["selected_second"], dim["occurrences_second"]) == (7, True, False, 0)
    assert found["massive resid_post without_first"]["dims"] == [0, 0]


def test_what_differs_is_named_and_nothing_else(tmp_path, capsys):
    one = FakeRun(model="m", sequences=2).write(tmp_path / "m/text")
    other = FakeRun(model="m@late", sequences=3, parameters=7).write(tmp_path / "m@late/text")
    table = differences([read_json(run / "summary.json") for run in (one, other)])
    assert {name: table[name].to_list() for name in table.columns} == {
        "run": ["m/text", "m@late/text"], "model": ["m", "m@late"], "parameters": [f"{FakeRun().parameters:,}", "7"],
        "sequences": ["2", "3"],
    }  # fmt: skip
    assert differences([read_json(one / "summary.json")] * 2).columns == ["run"]
    labelled = read_json(one / "summary.json")
    labelled["corpus"]["name"] += "@bfloat16"  # the label of a run beside the first: its text is the same
    assert differences([read_json(one / "summary.json"), labelled]).columns == ["run"]
    assert main(["compare", str(one), str(other)]) == 0
    shown = capsys.readouterr().out
    assert "What differs" in shown and "sequences" in shown and "dtype" not in shown


def test_the_terminal_shows_the_first_dims_and_all_on_request(tmp_path, capsys):
    runs = [FakeRun(model="m", massive=tuple(range(20, 40))).write(tmp_path / f"m/{name}") for name in ("a", "b")]
    for more, shown in (((), 10), (("--all",), 20)):
        assert main(["compare", *map(str, runs), "--rule", "massive", *more]) == 0
        out = capsys.readouterr().out
        assert sum(f"\n│ {dim} " in out for dim in range(20, 40)) == shown
        assert ("10 more dims: --all" in out) == (shown == 10)
    assert "massive resid_post without_first" in out.partition("select no dim in either run")[2]


def test_command(runs, tmp_path, capsys):
    assert main(["compare", *map(str, runs), "--rule", "location", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["location attn_norm all"]
    assert found["keys"] == ["a/text", "b/text"] and found["jaccard"] == 0.4
    assert found["top_common"] == [{"dim": 4, "min_count": 20}, {"dim": 3, "min_count": 10}]
    assert main(["compare", *map(str, runs)]) == 0
    assert "40.00%" in capsys.readouterr().out
    assert main(["compare", str(runs[0]), str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: has no dims.parquet, expected the directory")


def test_dims_of_two_models_are_never_compared(tmp_path, capsys):
    """A run of another model's text, a revision and a copy of the weights elsewhere are of one model; other weights
    under another name, and another half or width under the same, are not."""
    facts = {
        "m/one": {}, "m@step5/one": {"model_origin": "org/m", "model_revision": "5"},
        "copy/one": {"model_origin": "/copy"}, "other/one": {"model_origin": "org/other", "model_revision": "7"},
        "m/half": {"part": "decoder"}, "m/wide": {"d_model": 24},
    }  # fmt: skip
    written = FakeRun(model="m", origin="org/m").write(tmp_path / "m/one") / "dims.parquet"
    rows, provenance = read_table(written, DIMS)
    for name, own in facts.items():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        of = {**provenance, "model": name.partition("/")[0], **own}
        write_table(tmp_path / name / "dims.parquet", rows, DIMS, of)
    compare_runs([tmp_path / name for name in facts], tmp_path / "dims.parquet", tmp_path / "common.parquet")
    found = read_table(tmp_path / "dims.parquet", COMPARISON)[0].select("first", "second").unique().rows()
    assert set(found) == {("m/one", "m@step5/one"), ("m/one", "copy/one")}
    assert main(["compare", str(tmp_path / "m/one"), str(tmp_path / "other/one")]) == 1
    assert "two models, m in" in capsys.readouterr().err


def test_another_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no dims\.parquet"):
        compare_runs([tmp_path], tmp_path / "dims.parquet", tmp_path / "common.parquet")
