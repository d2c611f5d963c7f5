"""Files written whole or not at all; what killed processes leave is known from what living ones write."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from outlier_features.errors import InputError
from outlier_features.files.artifacts import (
    HOST,
    read_json,
    replacing,
    require_page,
    require_sequences,
    scratch_directory,
    unfinished,
    write_json,
    write_page,
)

KILLED = """
import os, signal, sys
from outlier_features.files.artifacts import replacing, scratch_directory
with replacing(sys.argv[1]) as file, scratch_directory(sys.argv[1]) as directory:
    file.write_text("half")
    (directory / "part").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_writer(path):
    subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), path], check=False)
    return unfinished(path.parent.iterdir())


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path):
    left = kill_writer(tmp_path / "table.parquet")
    assert {one.path.is_dir() for one in left} == {True, False} and all(one.is_abandoned for one in left)
    assert [one.size for one in left] == [4, 4]
    others = kill_writer(tmp_path / "other.table.parquet")
    with replacing(tmp_path / "table.parquet") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "table.parquet").read_text() == "whole"
    assert set(tmp_path.iterdir()) == {tmp_path / "table.parquet", *(one.path for one in others if one not in left)}


def test_what_a_living_process_or_another_host_writes_is_left_alone(tmp_path):
    elsewhere = tmp_path / ".x.some-node-1-0123abcd.tmp"
    elsewhere.touch()
    with replacing(tmp_path / "x") as first:
        first.write_text("first")
        with replacing(tmp_path / "x") as second:
            second.write_text("second")
        assert first.exists() and elsewhere.exists()
    assert (tmp_path / "x").read_text() == "first"
    (only,) = unfinished(tmp_path.iterdir())
    assert (only.host, only.process, only.is_abandoned) == ("some-node", 1, False)


@pytest.mark.parametrize("name", ["x.tmp", ".x.tmp", ".x.host.tmp", ".hidden", f".{HOST}-1-0123abcd.tmp"])
def test_files_of_other_names_are_not_ours(tmp_path, name):
    assert unfinished(iter([tmp_path / name])) == []


def test_a_failure_leaves_what_was_there(tmp_path):
    write_json(tmp_path / "x", {"a": 1})
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(ValueError), scratch_directory(tmp_path / "x"):
        raise ValueError
    assert os.listdir(tmp_path) == ["x"] and read_json(tmp_path / "x") == {"a": 1}


CONTENT = {"name": "é <b>", "list": [1, 2.5, None, True], "nested": {"x": 1e-30, "y": "z"}}


def test_json_is_read_back_and_any_flipped_bit_is_seen(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, CONTENT)
    assert read_json(path) == CONTENT
    whole = path.read_bytes()
    seen = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            read = read_json(path)
        except InputError as error:
            assert str(path) in str(error)
            seen += 1
        else:  # the name of the checksum itself: such a file is another program's
            assert {key: read[key] for key in CONTENT} == CONTENT
    assert seen >= len(whole) - len("content_crc32")
    path.write_text(json.dumps({"a": 1}))  # a file of another program has no checksum
    assert read_json(path) == {"a": 1}


def test_a_page_is_whole_or_refused(tmp_path):
    path = tmp_path / "page.html"
    write_page(path, "<html>\n<p>é</p>\n</html>\n")
    require_page(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:20], whole + b" ", whole.replace(b"<p>", b"<q>")):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"page\.html"):
            require_page(path)


def test_a_chunk_s_name_says_which_sequences_it_holds(tmp_path):
    require_sequences({"start": 4, "stop": 8, "sequences": 8}, tmp_path / "04-07.parquet")
    require_sequences({"start": 4, "stop": 6, "sequences": 6}, tmp_path / "04-07.parquet")  # the text gave no more
    require_sequences({"start": 3, "stop": 3, "sequences": 3}, tmp_path / "04-07.parquet")
    require_sequences({}, tmp_path / "layers.parquet")
    with pytest.raises(InputError, match="its stop is 6, expected 8"):
        require_sequences({"start": 4, "stop": 6, "sequences": 9}, tmp_path / "04-07.parquet")
    with pytest.raises(InputError, match="its start is 0, expected 4"):
        require_sequences({"start": 0, "stop": 4, "sequences": 8}, tmp_path / "04-07.parquet")
