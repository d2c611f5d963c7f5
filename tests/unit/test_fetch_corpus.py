"""Corpora from the standard library, from files and from data sets of a hub on loopback."""

import gzip
import hashlib
import io
import json
import platform
import pydoc_data.topics
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub_server import PutOff, running_hub
from outlier_features.errors import InputError
from outlier_features.fetch.fetch_corpus import fetch_corpus
from outlier_features.files.artifacts import read_json
from rule_process import run_rule, run_rules


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


def digest(texts: list[str]) -> str:
    """The corpus hash, from its description."""
    content = b"".join(len(text.encode()).to_bytes(8, "little") + text.encode() for text in texts)
    return hashlib.sha256(content).hexdigest()


def texts_of(directory: Path) -> list[str]:
    table = pq.read_table(directory / "documents.parquet")
    assert table.column("document").to_pylist() == list(range(table.num_rows))
    return table.column("text").to_pylist()


def record_of(directory: Path) -> dict[str, object]:
    return read_json(directory / "source.json")


def jsonl(texts: list[str], column: str = "text") -> bytes:
    return b"".join(json.dumps({"id": number, column: text}).encode() + b"\n" for number, text in enumerate(texts))


def parquet(texts: list[str], column: str = "text", **options: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(len(texts))), column: texts}), buffer, **options)
    return buffer.getvalue()


def test_stdlib_topics_are_the_documents(tmp_path):
    fetch_corpus({"stdlib": "pydoc_data.topics"}, tmp_path)
    expected = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    assert len(expected) > 50
    assert texts_of(tmp_path) == expected
    python = platform.python_version()
    assert record_of(tmp_path) == {
        "kind": "stdlib",
        "origin": "pydoc_data.topics",
        "revision": f"python {python}",
        "licence": "PSF-2.0",
        "sha256": digest(expected),
        "documents": len(expected),
        "bytes": sum(len(text.encode()) for text in expected),
        "python": python,
    }
    schema = pq.read_schema(tmp_path / "documents.parquet")
    assert (schema.names, schema.types) == (["document", "text"], [pa.uint32(), pa.string()])
    assert json.loads(schema.metadata[b"provenance"]) == {
        "origin": "pydoc_data.topics",
        "revision": f"python {python}",
        "sha256": digest(expected),
    }
    column = pq.ParquetFile(tmp_path / "documents.parquet").metadata.row_group(0).column(1)
    assert column.compression == "ZSTD"


def test_files_are_read_in_the_order_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("b.txt").write_bytes("\ufeffone\r\nzwei – 二\n".encode())
    Path("rows.jsonl").write_bytes(jsonl(["three", "", "fo\u2028ur"], "body") + b'\n{"body": "five"}')
    Path("table.parquet").write_bytes(parquet(["six", "seven 🦙"], "body"))
    Path("a.txt").write_bytes(b"eight")
    source = {"files": ["b.txt", "rows.jsonl", "table.parquet", "a.txt"], "column": "body"}
    fetch_corpus(source, tmp_path / "corpus")
    expected = ["one\r\nzwei – 二\n", "three", "", "fo\u2028ur", "five", "six", "seven 🦙", "eight"]
    assert texts_of(tmp_path / "corpus") == expected
    record = record_of(tmp_path / "corpus")
    assert record["sha256"] == digest(expected)
    assert (record["kind"], record["documents"], record["bytes"]) == ("files", 8, len("".join(expected).encode()))


ROWS = ['one, "two"\n', "Ünï", ""]
KINDS = {
    "a.md": b"# One\n", "README": b"# One\n", "a.TXT": b"# One\n", "a.txt.gz": gzip.compress(b"# One\n"),
    "a.gz": gzip.compress(b"# One\n"),
    "rows.csv": "n,text\r\n1,\"one, \"\"two\"\"\n\"\r\n2,Ünï\r\n3,\"\"\r\n".encode(),
    "rows.json": json.dumps([{"text": text} for text in ROWS]).encode(),
    "strings.json": json.dumps(ROWS).encode(),
    "lines.json": "".join(json.dumps({"text": text}) + "\n" for text in ROWS).encode(),
    "rows.jsonl.gz": gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in ROWS).encode()),
    "rows.csv.gz": gzip.compress("text\n\"one, \"\"two\"\"\n\"\nÜnï\n\"\"\n".encode()),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_texts(tmp_path, name):
    (tmp_path / name).write_bytes(KINDS[name])
    fetch_corpus({"files": [str(tmp_path / name)]}, tmp_path / "corpus")
    found = pq.read_table(tmp_path / "corpus/documents.parquet")["text"].to_pylist()
    assert found == (ROWS if name.partition(".")[0] in ("rows", "strings", "lines") else ["# One\n"])


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.docx", b"x", r"a\.docx is of no known kind, expected \.txt, \.md"),
        ("a.parquet.gz", b"x", "of no known kind"),
        ("a.txt.gz", b"x", "expected a whole gzip file"),
        ("a.csv", b"n,body\n1,2\n", r"a\.csv: has no column 'text', found 'n', 'body'"),
        ("a.csv", b"n,text\n1\n", r"a\.csv, line 2, column 'text': expected a string, found NoneType"),
        ("a.csv", b'text\n"a\n', r"a\.csv, line 1: expected CSV"),
        ("a.json", b"[1]", r"a\.json, row 0: expected a string, found int"),
        ("a.json", b'[{"a": 1}]', r"a\.json, row 0: has no column 'text', found 'a'"),
        ("a.json", b"[", r"a\.json: expected a JSON array, found no JSON"),
        ("a.json", b'{"text": ', r"a\.json, line 1: expected a JSON object"),
    ],
)
def test_texts_that_are_not_what_their_name_says(tmp_path, name, content, error):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=error):
        fetch_corpus({"files": [str(tmp_path / name)]}, tmp_path / "corpus")


def test_hash_tells_texts_apart_that_join_alike(tmp_path):
    hashes = set()
    for number, texts in enumerate([["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""]]):
        (tmp_path / "rows.jsonl").write_bytes(jsonl(texts))
        fetch_corpus({"files": [str(tmp_path / "rows.jsonl")]}, tmp_path / str(number))
        hashes.add(record_of(tmp_path / str(number))["sha256"])
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("bounds", "count"),
    [({"max_rows": 2}, 2), ({"max_rows": 9}, 4), ({"max_bytes": 8}, 2), ({"max_bytes": 7}, 1), ({"max_bytes": 99}, 4)],
)
def test_reading_stops_at_the_bounds_and_cuts_no_document(tmp_path, bounds, count):
    texts = ["äöü", "zz", "third", "f"]  # 6, 2, 5 and 1 bytes
    (tmp_path / "rows.jsonl").write_bytes(jsonl(texts))
    fetch_corpus({"files": [str(tmp_path / "rows.jsonl")], **bounds}, tmp_path / "corpus")
    assert texts_of(tmp_path / "corpus") == texts[:count]
    assert record_of(tmp_path / "corpus").get("limit") == (None if count == 4 else next(iter(bounds)))


def test_nothing_is_read_beyond_the_bounds(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(jsonl(["one", "two"]) + b"this is no JSON\n")
    fetch_corpus({"files": [str(tmp_path / "rows.jsonl"), "missing.txt"], "max_rows": 2}, tmp_path / "corpus")
    assert texts_of(tmp_path / "corpus") == ["one", "two"]


FAULTS = {
    "bad UTF-8 in text": ("a.txt", b"one\ntwo\n\xff\n", r"a\.txt, line 3: expected UTF-8, found byte 0xff"),
    "bad UTF-8 in a line": ("a.jsonl", b'{"text": "a"}\n{"text": "\xe4"}\n', r"a\.jsonl, line 2: expected UTF-8"),
    "no JSON": ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', r"a\.jsonl, line 3: expected a JSON object, found no JSON"),
    "no object": ("a.jsonl", b'["a"]\n', r"a\.jsonl, line 1: expected a JSON object, found list"),
    "no column in a line": ("a.jsonl", b'{"body": "a"}\n', r"a\.jsonl, line 1: has no column 'text', found 'body'"),
    "number in a line": ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl, line 1, column 'text': expected a string, found int"),
    "half a character": ("a.jsonl", b'{"text": "\\ud83e"}\n', r"a\.jsonl, line 1, column 'text': .*surrogate"),
    "no column in a table": (
        "a.parquet",
        parquet(["a"], "body"),
        r"a\.parquet: has no column 'text', found 'id', 'body'",
    ),
    "numbers in a table": (
        "a.parquet",
        parquet([1, 2]),
        r"a\.parquet: column 'text' is of type int64, expected string",
    ),
    "null in a table": ("a.parquet", parquet(["a", None]), r"a\.parquet, row 1, column 'text': .*found NoneType"),
    "cut table": ("a.parquet", parquet(["a"])[:-9], r"a\.parquet"),
    "no table": ("a.parquet", b"hello", r"a\.parquet: expected a whole Parquet file"),
    "empty text": ("a.txt", b"", r"a\.txt has 1 documents and no text"),
    "no rows": ("a.jsonl", b"\n", r"a\.jsonl has 0 documents and no text"),
    "too large": ("a.txt", b"x" * 101, r"^max_bytes: is 100, but document 1 of .*a\.txt has 101"),
    "other kind": ("a.docx", b"x", r"a\.docx is of no known kind"),
    "not there": ("a.txt", None, r"a\.txt cannot be read: No such file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_files_are_refused(tmp_path, fault):
    name, content, expected = FAULTS[fault]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=expected):
        fetch_corpus({"files": [str(tmp_path / name)], "max_bytes": 100}, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists() or not list((tmp_path / "corpus").iterdir())


def test_invalid_utf8_in_a_table_is_refused(tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    )
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet, row 1: expected UTF-8, found byte 0xff"):
        fetch_corpus({"files": [str(tmp_path / "a.parquet")]}, tmp_path / "corpus")


def card(configs: str) -> bytes:
    return f"---\nlicense: cc-by-4.0\nconfigs:\n{configs}---\n# Data\n".encode()


LAYOUTS = {
    "split-and-path": (
        {
            "README.md": card("- config_name: en\n  data_files:\n  - split: train\n    path: en/*.parquet\n"),
            "en/x.parquet": parquet(["a", "b"]),
            "en/y.parquet": parquet(["c"]),
            "en/deep/z.parquet": parquet(["not this"]),
            "train.jsonl": jsonl(["nor this"]),
        },
        {"config": "en"},
        ["a", "b", "c"],
    ),
    "list-of-paths": (
        {
            "README.md": card(
                "- config_name: en\n  data_files:\n  - split: validation\n    path: [two.jsonl, 'one*.jsonl.gz']\n"
                "  - split: train\n    path: other.jsonl\n"
            ),
            "one-1.jsonl.gz": gzip.compress(jsonl(["b"])),
            "two.jsonl": jsonl(["a"]),
            "other.jsonl": jsonl(["not this"]),
        },
        {"config": "en", "split": "validation"},
        ["a", "b"],
    ),
    "string": (
        {"README.md": card("- config_name: default\n  data_files: '**/*.jsonl'\n"), "x/y/z.jsonl": jsonl(["a"])},
        {},
        ["a"],
    ),
    "strings-in-a-directory": (
        {
            "README.md": card("- config_name: default\n  data_dir: sub\n  data_files: [p.jsonl, q.jsonl]\n"),
            "sub/p.jsonl": jsonl(["a"]),
            "sub/q.jsonl": jsonl(["b"]),
            "p.jsonl": jsonl(["not this"]),
        },
        {},
        ["a", "b"],
    ),
    "dictionary": (
        {"README.md": card("- config_name: default\n  data_files:\n    test: t.jsonl\n"), "t.jsonl": jsonl(["a"])},
        {"split": "test"},
        ["a"],
    ),
    "only-config-is-the-default": (
        {
            "README.md": card("- config_name: plain\n  data_files:\n  - {split: train, path: p.jsonl}\n"),
            "p.jsonl": jsonl(["a"]),
        },
        {},
        ["a"],
    ),
    "marked-config-is-the-default": (
        {
            "README.md": card(
                "- {config_name: one, data_files: one.jsonl}\n"
                "- {config_name: two, data_files: two.jsonl, default: true}\n"
            ),
            "one.jsonl": jsonl(["not this"]),
            "two.jsonl": jsonl(["a"]),
        },
        {},
        ["a"],
    ),
    "customary-folder-of-the-config": (
        {
            "fr/train-00000-of-00002.parquet": parquet(["a"]),
            "fr/train-00001-of-00002.parquet": parquet(["b"]),
            "fr/test-00000-of-00001.parquet": parquet(["not this"]),
            "data/train-00000-of-00001.parquet": parquet(["nor this"]),
        },
        {"config": "fr"},
        ["a", "b"],
    ),
    "customary-data": (
        {"data/train-00000-of-00001.parquet": parquet(["a"]), "data/train_sft-00000-of-00001.parquet": parquet(["x"])},
        {},
        ["a"],
    ),
    "customary-top": (
        {"README.md": b"no header", "train.jsonl": jsonl(["a"]), "training.jsonl": jsonl(["x"])},
        {},
        ["a"],
    ),
    "json-of-lines": (
        {"en/c4-train.json.gz": gzip.compress(jsonl(["x"])), "train.00.json.gz": gzip.compress(jsonl(["a"]))},
        {},
        ["a"],
    ),
    "other-column": ({"train.parquet": parquet(["a"], "content")}, {"column": "content"}, ["a"]),
}


def test_layouts_of_data_sets(hub, tmp_path):
    sources, expected = {}, {}
    for name, (files, source, texts) in LAYOUTS.items():
        repository = hub.dataset(f"org/{name}", files)
        sources[tmp_path / name] = {"hub": f"org/{name}", **source}
        expected[tmp_path / name] = (texts, repository.revisions["main"])
    assert not any(outcome.error for outcome in run_rules("fetch_corpus", sources, hub.url, tmp_path / "home"))
    for directory, (texts, commit) in expected.items():
        assert texts_of(directory) == texts, directory
        record = record_of(directory)
        assert (record["kind"], record["origin"]) == ("hub", f"org/{directory.name}")
        assert (record["revision"], record["sha256"]) == (commit, digest(texts))
    assert record_of(tmp_path / "split-and-path")["licence"] == "cc-by-4.0"
    assert record_of(tmp_path / "split-and-path")["files"] == ["en/x.parquet", "en/y.parquet"]
    assert record_of(tmp_path / "only-config-is-the-default")["config"] == "plain"


def test_converted_branch_is_the_last_resort_and_of_main_alone(hub, tmp_path):
    repository = hub.dataset("org/csv", {"data.csv": b"text\na\n"})
    original = repository.revisions["main"]
    converted = repository.commit(
        {"default/train/0000.parquet": parquet(["a"]), "big/partial-train/0000.parquet": parquet(["b"])},
        "refs/convert/parquet",
    )
    sources = {tmp_path / "default": {"hub": "org/csv"}, tmp_path / "big": {"hub": "org/csv", "config": "big"}}
    sources[tmp_path / "again"] = {"hub": "org/csv", "revision": converted}
    assert not any(outcome.error for outcome in run_rules("fetch_corpus", sources, hub.url, tmp_path / "home"))
    assert [texts_of(directory) for directory in sources] == [["a"], ["b"], ["a"]]
    assert {record_of(directory)["revision"] for directory in sources} == {converted}
    pinned = {"hub": "org/csv", "revision": original}
    error = run_rule("fetch_corpus", pinned, tmp_path / "pinned", hub.url, tmp_path / "home")
    assert f"data set 'org/csv' at revision '{original}' has no files of config 'default' and split 'train'" in error
    assert "it has data.csv" in error


def test_commit_of_a_branch_is_kept(hub, tmp_path):
    repository = hub.dataset("org/moving", {"train.jsonl": jsonl(["old"])})
    old = repository.revisions["main"]
    repository.commit({"train.jsonl": jsonl(["new"])})
    sources = {tmp_path / "main": {"hub": "org/moving"}, tmp_path / "pinned": {"hub": "org/moving", "revision": old}}
    assert not any(outcome.error for outcome in run_rules("fetch_corpus", sources, hub.url, tmp_path / "home"))
    assert [texts_of(directory) for directory in sources] == [["new"], ["old"]]
    assert [record_of(directory)["revision"] for directory in sources] == [repository.revisions["main"], old]


def test_large_files_are_not_fetched_whole(hub, tmp_path):
    generator = random.Random(0)
    texts = [generator.randbytes(2000).hex() for _ in range(4000)]  # 16 MB
    plain = {"compression": "none", "use_dictionary": False, "row_group_size": 4000}
    hub.dataset("org/parquet", {"train-0.parquet": parquet(texts, **plain), "train-1.parquet": b"not read"})
    hub.dataset("org/jsonl", {"train.jsonl": jsonl(texts)})
    hub.dataset("org/gz", {"train.jsonl.gz": gzip.compress(jsonl(texts), 1)})
    cases = [
        ("parquet", {"max_rows": 100}, 6_000_000),
        ("jsonl", {"max_bytes": 400_000}, 3_000_000),
        ("gz", {"max_rows": 100}, 3_000_000),
    ]
    for kind, bounds, most in cases:
        hub.forget()
        source = {"hub": f"org/{kind}", **bounds}
        assert run_rule("fetch_corpus", source, tmp_path / kind, hub.url, tmp_path / "home") == ""
        assert texts_of(tmp_path / kind) == texts[:100]
        assert hub.sent < most, kind


def test_a_large_data_set_takes_few_requests_also_of_a_hub_that_is_busy(hub, tmp_path):
    """One with a folder for each of many crawls, of which the first rows are read, as of FineWeb-Edu."""
    texts = [f"{number} " * 40 for number in range(600)]
    first = parquet(texts, row_group_size=200)
    files = {f"data/CC-{n:02}/train-{m}.parquet": b"not read" for n in range(20) for m in range(5)}
    configs = card("- config_name: default\n  data_files:\n  - split: train\n    path: data/*/*\n")
    repository = hub.dataset("org/web", {**files, "data/CC-00/train-0.parquet": first, "README.md": configs})
    old = repository.revisions["main"]
    repository.commit({"README.md": configs})
    source = {"hub": "org/web", "revision": old, "max_rows": 150}
    assert run_rule("fetch_corpus", source, tmp_path / "calm", hub.url, tmp_path / "home") == ""
    assert len(hub.requests) <= 10
    hub.put_off = [
        PutOff(path, status, 1) for path in ("/revision/", "/tree/", "README", "train-0") for status in (429, 503)
    ]
    error = run_rule("fetch_corpus", source, tmp_path / "busy", hub.url, tmp_path / "home", TEST_WAITS="[0.05, 0.05]")
    assert error == "" and not any(one.times for one in hub.put_off)
    for folder in ("calm", "busy"):
        record = record_of(tmp_path / folder)
        assert (record["revision"], record["sha256"], record["documents"]) == (old, digest(texts[:150]), 150)


CONFIGS = """- config_name: en
  data_files:
  - {split: train, path: en.parquet}
  - {split: test, path: test.parquet}
- {config_name: fr, data_files: fr.parquet}
- {config_name: gz, data_files: broken.jsonl.gz}
"""
REFUSED = {
    "gated": ({"hub": "org/no-access"}, "data set 'org/no-access' was refused (HTTP 403)", "/datasets/org/no-access"),
    "gated, no token": ({"hub": "org/no-token"}, "is gated: accept its licence", "hf auth login"),
    "missing": ({"hub": "org/nothing"}, "hub: data set 'org/nothing' was not found"),
    "revision": ({"hub": "org/data", "revision": "v9"}, "revision: 'v9' was not found in data set 'org/data'"),
    "config": ({"hub": "org/data", "config": "de"}, "no files of config 'de'", "'en' (train, test), 'fr' (train)"),
    "split": ({"hub": "org/data", "config": "en", "split": "dev"}, "split 'dev'", "'en' (train, test)"),
    "column": ({"hub": "org/data", "config": "fr"}, "fr.parquet of data set 'org/data': has no column 'text'"),
    "broken": ({"hub": "org/data", "config": "gz"}, "broken.jsonl.gz of data set 'org/data': expected a whole gzip"),
}


def test_refused_data_sets_are_one_sentence(hub, tmp_path):
    files = {"README.md": card(CONFIGS), "en.parquet": parquet(["a"]), "fr.parquet": parquet(["a"], "texte")}
    hub.dataset("org/data", {**files, "broken.jsonl.gz": gzip.compress(jsonl(["a"] * 1000))[:-20]})
    hub.dataset("org/no-access", files).gated = 403
    hub.dataset("org/no-token", files).gated = 401
    sources = {tmp_path / name: source for name, (source, *_) in REFUSED.items()}
    outcomes = run_rules("fetch_corpus", sources, hub.url, tmp_path / "home")
    for (name, (_, *expected)), outcome in zip(REFUSED.items(), outcomes, strict=True):
        assert all(part in outcome.error for part in expected), outcome.error
        assert outcome.seconds < 15, name
        assert not (tmp_path / name).exists() or not list((tmp_path / name).iterdir())


def test_data_whose_card_is_public_may_be_gated(hub, tmp_path):
    hub.dataset("org/data", {"train.parquet": parquet(["a"])}).gated = 401
    error = run_rule("fetch_corpus", {"hub": "org/data"}, tmp_path / "corpus", hub.url, tmp_path / "home")
    assert "data set 'org/data' was refused (HTTP 401), it is gated" in error
