"""A Parquet file with any bit flipped is refused, or still holds what was written."""

import json

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from outlier_features.errors import InputError
from outlier_features.extract.loss_schema import LOSS
from outlier_features.files.sealed_parquet import SEAL, metadata_of, open_parquet, sealing, write_parquet
from outlier_features.files.table_writer import TableWriter
from outlier_features.files.tables import Column, Table, read_batches, read_table, write_table

FRAME = pl.DataFrame(
    {"sequence": [0, 1, 2], "tokens": [9, 8, 7], "bytes": [30, 20, 10], "nll": [1.5, None, 2.5]}, schema=LOSS.schema
)


def test_other_readers_read_it(tmp_path):
    write_table(tmp_path / "loss.parquet", FRAME, LOSS, {"start": 0})
    assert pl.read_parquet(tmp_path / "loss.parquet").equals(FRAME)
    metadata = pq.read_schema(tmp_path / "loss.parquet").metadata
    assert json.loads(metadata[b"provenance"]) == {"start": 0} and len(metadata[b"content_crc32"]) == 8


def test_no_flipped_bit_goes_unseen(tmp_path):
    path = tmp_path / "loss.parquet"
    write_table(path, FRAME, LOSS, {"start": 0})
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    refused = []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            frame, provenance = read_table(path, LOSS)
        except InputError as error:
            assert str(path) in str(error)
            refused.append(place)
        else:
            assert frame.equals(FRAME) and provenance == {"start": 0}
    assert set(refused) >= {*range(4), *range(footer, len(whole))}
    assert len(refused) > 0.9 * len(whole)


def test_pages_are_checked(tmp_path):
    path = tmp_path / "x.parquet"
    values = np.random.default_rng(0).integers(0, 1 << 60, 100_000)
    write_parquet(path, pl.DataFrame({"x": values}).to_arrow(), {})
    whole = path.read_bytes()
    path.write_bytes(whole[:300_000] + bytes([whole[300_000] ^ 1]) + whole[300_001:])
    with open_parquet(path) as file, pytest.raises(OSError, match="CRC"):
        file.read()


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1PAR1", b"\xff" * 100, b"PAR1" + b"\0" * 50 + b"\x04\0\0\0PAR1"]
)
def test_what_is_no_parquet_file_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError):
        open_parquet(tmp_path / "x")


def test_a_stream_of_row_groups_is_sealed_too(tmp_path):
    table = FRAME.to_arrow()
    with sealing(tmp_path / "x") as temporary, pq.ParquetWriter(temporary, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.write_table(table)
        writer.add_key_value_metadata({"late": "yes", **SEAL})
    with open_parquet(tmp_path / "x") as file:
        assert metadata_of(file)["late"] == "yes" and file.num_row_groups == 2


def test_a_file_of_another_writer_is_refused(tmp_path):
    FRAME.write_parquet(tmp_path / "x")
    with pytest.raises(InputError, match="not one that this workflow wrote"):
        read_table(tmp_path / "x", LOSS)


ROWS = Table(
    "rows", "something", (Column("parts", pl.List(pl.Int64), "a list"), Column("layer", pl.UInt16, "the block"))
)  # fmt: skip


@pytest.mark.parametrize("layers", [[], [0], [2, 3], [1, 4, 9], [7]])
def test_blocks_that_nobody_wants_are_not_read(tmp_path, layers):
    groups = [[0, 0], [0, 1], [2], [3, 5, 4], [None]]
    with TableWriter(tmp_path / "rows.parquet", ROWS) as writer:
        for group in groups:
            writer.write(pl.DataFrame({"parts": [[1, 2]] * len(group), "layer": group}, schema=ROWS.schema))
    read = pl.concat(read_batches(tmp_path / "rows.parquet", ROWS, layers))["layer"].to_list()
    # A group is read as a whole; of one without values nothing is known.
    expected = [
        group for group in groups if None in group or any(min(group) <= layer <= max(group) for layer in layers)
    ]
    assert read == [layer for group in expected for layer in group]
