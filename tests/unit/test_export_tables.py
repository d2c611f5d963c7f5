"""Exported tables read back as the tables, by readers that know nothing of this project."""

import csv
import json
import math
import struct
from random import Random

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from outlier_features.dims.dims_schema import MASSIVE
from outlier_features.errors import InputError
from outlier_features.experts.experts_schema import ROUTING
from outlier_features.files.export_tables import export_tables
from outlier_features.files.tables import public_tables, write_table
from outlier_features.origin.origin_schema import ORIGIN_WEIGHTS

TEXTS = [
    "a,b",
    'say "x"',
    "two\nlines",
    "carriage\rreturn",
    "",
    None,
    " space ",
    "\u2028",
    "\x00\x1b",
    "=1+1",
    "é№",
    "null",
]
ODD = [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1e22, 123456789012345680.0, 1 / 3, 6.0]


def floats(number):
    """Any finite float64."""
    random, found = Random(0), list(ODD)
    while len(found) < number:
        value = struct.unpack("d", random.randbytes(8))[0]
        if math.isfinite(value):
            found.append(value)
    return found


def massive(rows):
    values = floats(max(rows, len(ODD)))[:rows]
    return pl.DataFrame(
        {
            "rule": "massive", "site": "resid_post", "sequence": range(rows), "layer": 3, "token": range(rows),
            "dim": 7, "value": values, "median": [None if n % 5 == 0 else x for n, x in enumerate(values)],
            "ratio": values[::-1],
            "massive_all": [n % 3 == 0 for n in range(rows)], "median_without_first": 0.0, "ratio_without_first": None,
            "massive_without_first": False, "excluded": True, "token_id": range(rows),
            "token_text": [TEXTS[n % len(TEXTS)] for n in range(rows)],
        },
        schema=MASSIVE.schema,
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A table of several batches, one with lists, and an empty one."""
    folder = tmp_path_factory.mktemp("run")
    frames = {
        "massive": massive(150_000),
        "origin_weights": pl.DataFrame(
            {"target_dim": [7, 7], "layer": [1, 1], "weight": ["gate", "down"], "outputs": [4, 4], "inputs": [4, 4],
             "max_abs": [1.0, 2.0], "max_output": [0, 1], "max_input": [2, 3], "mean_abs": [0.5, 1 / 3],
             "singular_values": [None, [3.0, 0.1]], "dim_shares": [None, [0.5, 1 / 3]],
                 "projection": [None, 2.0], "projection_share": [None, 0.5], "slope": [None, -1.0],
                 "r2": [None, 1 / 3]},
            schema=ORIGIN_WEIGHTS.schema,
        ),
        "routing": pl.DataFrame(schema=ROUTING.schema),
    }  # fmt: skip
    for name, frame in frames.items():
        write_table(folder / f"{name}.parquet", frame, public_tables()[name], {"model": "tiny"})
    export_tables({name: folder / f"{name}.parquet" for name in frames}, folder / "export")
    return folder / "export", frames


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_reads_back_as_the_table(exported):
    folder, frames = exported
    rows = read_csv(folder / "massive.csv")
    frame = frames["massive"]
    assert list(rows[0]) == frame.columns and len(rows) == len(frame)
    assert [struct.pack("d", float(row["value"])) for row in rows] == [struct.pack("d", x) for x in frame["value"]]
    assert [row["median"] for row in rows[::5]] == [""] * (len(frame) // 5)
    assert [row["token_text"] for row in rows] == [text or "" for text in frame["token_text"]]
    assert {row["massive_all"] for row in rows} == {"true", "false"}
    back = pl.read_csv(folder / "massive.csv", schema=frame.schema)
    assert_frame_equal(back, frame, check_exact=True)  # an empty text and null are told apart


def test_csv_is_that_of_rfc_4180(exported):
    folder, _ = exported
    whole = (folder / "massive.csv").read_bytes()
    assert whole.startswith(b"rule,site,") and whole.endswith(b"\r\n")
    assert b',"say ""x"""\r\n' in whole and b',"a,b"\r\n' in whole


def test_json_reads_back_as_the_table(exported):
    folder, frames = exported
    records = json.loads((folder / "massive.json").read_text(encoding="utf-8"))
    assert records == frames["massive"].to_dicts()
    assert_frame_equal(pl.read_json(folder / "massive.json", schema=frames["massive"].schema), frames["massive"])
    assert (folder / "massive.json").read_bytes().count(b"\n") == len(records) + 2


def test_lists_are_json_in_csv(exported):
    folder, frames = exported
    rows = read_csv(folder / "origin_weights.csv")
    assert rows[0]["singular_values"] == "" and json.loads(rows[1]["singular_values"]) == [3.0, 0.1]
    assert json.loads((folder / "origin_weights.json").read_text()) == frames["origin_weights"].to_dicts()


def test_an_empty_table_has_a_header(exported):
    folder, _ = exported
    assert (folder / "routing.csv").read_text() == ",".join(ROUTING.schema) + "\n"
    assert json.loads((folder / "routing.json").read_text()) == []


def test_columns_and_provenance_are_described(exported):
    folder, frames = exported
    described = json.loads((folder / "tables.json").read_text())
    assert list(described) == list(frames)
    for name, one in described.items():
        assert [column["name"] for column in one["columns"]] == frames[name].columns
        assert all(column["meaning"] for column in one["columns"]) and one["provenance"] == {"model": "tiny"}
    assert {"name": "value", "type": "Float64", "unit": "activation", "meaning": "the value itself, signed"} in (
        described["massive"]["columns"]
    )


def test_a_damaged_table_is_refused_and_the_former_export_stays(exported, tmp_path):
    folder, _ = exported
    whole = (folder.parent / "massive.parquet").read_bytes()
    (tmp_path / "massive.parquet").write_bytes(whole)
    export_tables({"massive": tmp_path / "massive.parquet"}, tmp_path / "export")
    before = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    middle = len(whole) // 2
    (tmp_path / "massive.parquet").write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(InputError, match=r"massive\.parquet: expected the Parquet table 'massive'"):
        export_tables({"massive": tmp_path / "massive.parquet"}, tmp_path / "export")
    assert {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "massive.parquet"]


def test_an_export_replaces_the_former_one(exported, tmp_path):
    folder, _ = exported
    (tmp_path / "export").mkdir()
    (tmp_path / "export/left.csv").write_text("old")
    export_tables({"routing": folder.parent / "routing.parquet"}, tmp_path / "export")
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == [
        "routing.csv",
        "routing.json",
        "tables.json",
    ]
