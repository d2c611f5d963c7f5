"""Weights of hub models removed after their runs and fetched again: whose they are, who reads them, what remains."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from hub_server import Hub, running_hub
from outlier_features.errors import DamagedFile
from outlier_features.fetch.evict_weights import evict_weights
from outlier_features.files.artifacts import read_json
from outlier_features.files.model_source import locked, source_of
from outlier_features.model.memory import stored_weights
from outlier_features.run.verify_artifacts import verify_artifacts
from rule_process import run_rule
from test_fetch_model import MODEL, described
from test_hub_manners import sharded

OPEN = """
import json, sys
from pathlib import Path
from outlier_features.errors import InputError
from outlier_features.files.model_source import source_of
try:
    print(json.dumps(source_of(Path(sys.argv[1]))))
except InputError as error:
    print(json.dumps(str(error)))
if sys.argv[2:]:
    input()
"""


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


class Fetched:
    """A model that was fetched to be evicted, in `model`; the hub's cache is in `home`."""

    def __init__(self, server: Hub, folder: Path, **source: object):
        self.hub, self.home, self.source = server, folder / "home", source
        self.record, self.evicted = folder / "model/source.json", folder / "evicted.json"
        assert run_rule("fetch_model", source, self.record.parent, server.url, self.home, TEST_EVICT="1") == ""
        self.content = read_json(self.record)
        self.location = (self.record.parent / self.content["location"]).resolve()

    def evict(self) -> dict[str, object]:
        evict_weights(self.source, self.record, self.evicted)
        return read_json(self.evicted)

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """A job that needs the weights, in a process of its own."""
        settings = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        offline = environment.pop("HF_HUB_OFFLINE", "")
        # As `model.models` leaves them: a job has switched the hub off for itself.
        settings |= {"HF_HUB_OFFLINE": "1", "OUTLIER_FEATURES_OFFLINE": offline}
        settings |= {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home), **environment}
        command = [sys.executable, "-c", OPEN, str(self.record), *arguments]
        return subprocess.Popen(command, env=settings, stdin=-1, stdout=-1, text=True, start_new_session=True)

    def opened(self, **environment: str) -> object:
        """The record that such a job gets, or its error."""
        process = self.start(**environment)
        return json.loads(process.communicate(timeout=60)[0])

    def files(self) -> dict[str, bytes]:
        return {name: (self.location / name).read_bytes() for name in self.content["files"]}


def test_weights_are_removed_and_fetched_again_where_they_are_needed(hub, tmp_path):
    files = sharded(2)
    repository = hub.model("org/tiny", files)
    fetched = Fetched(hub, tmp_path, hub="org/tiny")
    assert fetched.content["files"] == described(files) and fetched.content["kind"] == "hub"
    assert fetched.content["location"] == f"hub/{repository.revisions['main']}"
    assert not [*fetched.home.rglob("*.safetensors")]  # the cache is everyone's
    before, stored = fetched.record.stat().st_mtime_ns, stored_weights(fetched.record, "float32")
    weights = [name for name in files if name.endswith(".safetensors")]
    assert fetched.evict() == {"freed_bytes": sum(len(files[n]) for n in weights), "files": weights, "left": None}
    assert not [*fetched.record.parent.rglob("*.safetensors")]
    assert fetched.evict()["freed_bytes"] == 0
    assert source_of(fetched.record, weights=False)["files"] == described(files)  # the tokenizer can be read
    assert stored_weights(fetched.record, "float32") == stored
    assert not any(verdict.found for verdict in verify_artifacts([tmp_path / "model"]))
    repository.commit({**files, "config.json": b'{"new": 1}', weights[0]: save({"w0": np.ones(3, np.float32)})})
    hub.forget()
    assert fetched.opened()["files"] == described(files)
    assert fetched.files() == files  # of the same commit, whatever the branch has become
    assert fetched.record.stat().st_mtime_ns == before and read_json(fetched.record) == fetched.content
    assert sorted(os.listdir(fetched.record.parent)) == [".source.json.lock", "hub", "source.json"]
    hub.forget()
    assert fetched.opened()["files"] == described(files) and hub.requests == []
    fetched.evict()
    anew = Fetched(hub, tmp_path, hub="org/tiny")  # of the branch as it is now
    hub.forget()
    assert anew.content["revision"] == repository.revisions["main"] != fetched.content["revision"]
    assert anew.opened()["files"] == anew.content["files"] and hub.requests == []
    assert os.listdir(anew.location.parent) == [anew.content["revision"]]


def test_a_broken_fetch_is_gone_on_with(hub, tmp_path):
    files = sharded(2)
    first, second = (name for name in files if name.endswith(".safetensors"))
    repository = hub.model("org/tiny", files)
    fetched = Fetched(hub, tmp_path, hub="org/tiny")
    fetched.evict()
    repository.gated = 403
    error = fetched.opened()
    assert "source.json: its weights were evicted and could not be fetched again: hub: access to model" in error
    repository.gated = 0
    error = fetched.opened(HF_HUB_OFFLINE="1")
    assert "could not be fetched again: hub: model 'org/tiny' at revision" in error and "HF_HUB_OFFLINE is set" in error
    repository.stall[second] = 10
    process = fetched.start()
    assert hub.stalled.wait(30)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    repository.stall.clear()
    hub.forget()
    assert fetched.opened()["files"] == described(files) and fetched.files() == files
    assert hub.downloads(first) == [] and len(hub.downloads(second)) == 1


def test_other_weights_than_before_are_refused(hub, tmp_path):
    repository = hub.model("org/tiny", MODEL)
    fetched = Fetched(hub, tmp_path, hub="org/tiny")
    fetched.evict()
    repository.commits[repository.revisions["main"]] = {**MODEL, "model.safetensors": save({"x": np.ones(9)})}
    error = fetched.opened()
    assert "found model.safetensors with SHA-256" in error and "delete this file" in error
    assert not (fetched.location / "model.safetensors").exists()


def test_what_others_put_there_or_read_is_left(hub, tmp_path):
    hub.model("org/cached", MODEL)
    hub.model("org/read", MODEL)
    assert run_rule("fetch_model", {"hub": "org/cached"}, tmp_path / "user", hub.url, tmp_path / "home") == ""
    hub.forget()
    cached = Fetched(hub, tmp_path, hub="org/cached")
    assert hub.downloads("model.safetensors") == []
    told = cached.evict()
    assert told["freed_bytes"] == 0 and "which is shared" in told["left"] and cached.files() == MODEL
    read = Fetched(hub, tmp_path / "read", hub="org/read")
    process = read.start("stay")
    assert json.loads(process.stdout.readline())["files"] == described(MODEL)
    told = read.evict()
    assert (told["freed_bytes"], told["left"]) == (0, "a job of another run reads them") and read.files() == MODEL
    process.communicate("\n", timeout=30)
    assert read.evict()["freed_bytes"] == len(MODEL["model.safetensors"])


def test_weights_that_came_into_the_cache_since_are_used_and_stay_there(hub, tmp_path):
    hub.model("org/tiny", MODEL)
    fetched = Fetched(hub, tmp_path, hub="org/tiny")
    fetched.evict()
    assert run_rule("fetch_model", {"hub": "org/tiny"}, tmp_path / "user", hub.url, tmp_path / "home") == ""
    hub.forget()
    assert fetched.opened()["files"] == described(MODEL) and hub.requests == []
    assert fetched.evict()["freed_bytes"] == 0
    assert source_of(tmp_path / "user/source.json")["files"] == described(MODEL)


def test_converted_weights_are_made_again(hub, tmp_path):
    torch.save({"weight": torch.arange(6.0)}, tmp_path / "pytorch_model.bin")
    pickled = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes(),
    }
    hub.model("org/old", pickled)
    fetched = Fetched(hub, tmp_path, hub="org/old", weights="bin")
    assert fetched.content["location"] == "." and not (fetched.record.parent / "hub").exists()
    before = fetched.files()
    assert fetched.evict()["freed_bytes"] == len(before["model.safetensors"])
    assert fetched.opened()["files"] == fetched.content["files"] and fetched.files() == before


def test_weights_that_were_lost_otherwise_are_an_error(hub, tmp_path):
    hub.model("org/tiny", MODEL)
    fetched = Fetched(hub, tmp_path, hub="org/tiny")
    (fetched.location / "model.safetensors").unlink()
    with locked(fetched.record, fcntl.LOCK_SH), pytest.raises(DamagedFile, match="found nothing; delete this file"):
        source_of(fetched.record)
