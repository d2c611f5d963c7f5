"""A hub that throttles, fails, breaks off and is slow: how often it is asked, and how many downloads are at work."""

import fcntl
import json
import time

import numpy as np
import pytest
from safetensors.numpy import save

from hub_server import PutOff, running_hub
from outlier_features.fetch import hub as hub_module
from outlier_features.files.artifacts import read_json
from rule_process import finish, run_rule, start_rule
from test_fetch_model import MODEL, described

QUICK = "[0.05, 0.05, 0.05, 0.05]"  # seconds, where the hub names none


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


def sharded(count: int) -> dict[str, bytes]:
    names = {f"w{n}": f"model-{n}-of-{count}.safetensors" for n in range(count)}
    shards = {file: save({name: np.full(3, n, np.float32)}) for n, (name, file) in enumerate(names.items())}
    index = json.dumps({"weight_map": names}).encode()
    return {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors.index.json": index, **shards}


def test_what_is_put_off_is_asked_for_again(hub, tmp_path):
    """Each kind of request: the commit, the list of files, a file's head and its content."""
    repository = hub.model("org/tiny", MODEL)
    hub.put_off = [
        PutOff("/revision/", 429, 1, {"Retry-After": "1"}),
        PutOff("/revision/", 503, 2),
        PutOff("/tree/", 429, 1),
        PutOff("/tree/", 500, 1),
        PutOff("config.json", 502, 3),
        PutOff("model.safetensors", 429, 1, {"RateLimit": '"resolvers";r=0;t=0'}),
        PutOff("model.safetensors", 504, 2),
    ]
    error = run_rule(
        "fetch_model", {"hub": "org/tiny"}, tmp_path / "model", hub.url, tmp_path / "home", TEST_WAITS=QUICK
    )
    assert error == "" and not any(one.times for one in hub.put_off)
    record = read_json(tmp_path / "model/source.json")
    assert (record["files"], record["revision"]) == (described(MODEL), repository.revisions["main"])
    first, second = hub.requests[:2]
    assert second.at - first.at >= 1
    log = (tmp_path / "home/log.txt").read_text()
    assert "127.0.0.1 answers HTTP 429: asked again in 1 s" in log


def test_the_limit_of_a_window_is_kept_to(hub, tmp_path):
    """As the hub says it, `RateLimit`: after a refusal nothing is asked before the window is over."""
    hub.model("org/tiny", sharded(3))
    hub.limit = (7, 3)
    assert run_rule("fetch_model", {"hub": "org/tiny"}, tmp_path / "model", hub.url, tmp_path / "home") == ""
    windows = [int(request.at // 3) for request in hub.requests if request.status]
    assert windows and len(windows) == len(set(windows))


def test_a_hub_that_stays_busy_is_given_up(hub, tmp_path):
    for name, headers in (("ill", {}), ("long", {"Retry-After": "86400"})):
        hub.model(f"org/{name}", MODEL)
        hub.put_off.append(PutOff(f"org/{name}/resolve/.*/config", 429, 1000, headers))
    expected = {"ill": ("HTTP 429, 5 times", 5), "long": ("HTTP 429, with the request to wait 86,400 s", 1)}
    for name, (sentence, count) in expected.items():
        hub.forget()
        source = {"hub": f"org/{name}"}
        error = run_rule("fetch_model", source, tmp_path / name, hub.url, tmp_path / "home", TEST_WAITS=QUICK)
        assert f"model 'org/{name}' at revision 'main' could not be fetched from {hub.url} ({sentence})" in error
        assert sum("config" in request.path for request in hub.requests) == count


def test_a_download_is_resumed_where_the_hub_is_busy_then(hub, tmp_path):
    weights = save({"weight": np.random.default_rng(0).random(2_000_000)})
    hub.model("org/cut", {**MODEL, "model.safetensors": weights}).cut["model.safetensors"] = 12 << 20
    hub.put_off = [PutOff("/resolve/.*json", 429, 2), PutOff("/resolve/.*model.safetensors", 503, 1)]
    source = {"hub": "org/cut"}
    assert not run_rule("fetch_model", source, tmp_path / "model", hub.url, tmp_path / "home", TEST_WAITS=QUICK)
    found = read_json(tmp_path / "model/source.json")["files"]["model.safetensors"]
    assert found == described({"": weights})[""]
    assert hub.downloads("model.safetensors")[-1].range == f"bytes={10 << 20}-"


def test_few_requests_make_a_model(hub, tmp_path):
    """The commit, the names of the files, and two for each file."""
    files = sharded(6)
    hub.model("org/sharded", {**files, "README.md": b"# x", "other.onnx": b"x"})
    assert run_rule("fetch_model", {"hub": "org/sharded"}, tmp_path / "model", hub.url, tmp_path / "home") == ""
    assert len(hub.requests) == 2 + 2 * (len(files) + 1)


def test_two_downloads_are_at_work_at_once(hub, tmp_path):
    """Of processes that share a cache, as jobs of one run or of several do."""
    for name in "abcd":
        hub.model(
            f"org/{name}", {**sharded(3), "model-0-of-3.safetensors": save({"w0": np.zeros(400_000)})}
        ).pause = 0.02
    home = tmp_path / "home"
    running = [start_rule("fetch_model", {tmp_path / name: {"hub": f"org/{name}"}}, hub.url, home) for name in "abcd"]
    assert all(outcome.error == "" for process in running for outcome in finish(process))
    assert hub.most_at_once == 2


def test_what_the_hub_asks_to_wait_is_not_held_against_it(hub):
    hub.model("org/tiny", MODEL)
    url = f"{hub.url}/api/models/org/tiny"
    hub.put_off = [PutOff("/api/", 429, 2, {"Retry-After": "1"})]
    with hub_module._Client() as client:
        assert hub_module.within(0.5, lambda: client.get(url)).status_code == 200
        with pytest.raises(TimeoutError, match="no answer within"):
            hub_module.within(0.2, lambda: time.sleep(1))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"RateLimit": '"api";r=0;t=55', "Retry-After": "7"}, 56),
        ({"RateLimit": '"api";r=12;t=55', "Retry-After": "7"}, 7),
    ],
)
def test_how_long_the_hub_asks_to_wait(headers, seconds):
    import httpx2

    assert hub_module._told(httpx2.Headers(headers)) == seconds


def test_a_cache_that_cannot_be_locked_limits_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module.constants, "HF_HUB_CACHE", str(tmp_path / "file/cache"))
    (tmp_path / "file").touch()
    with hub_module.download_slot():
        pass
    monkeypatch.setattr(hub_module.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub_module.download_slot(), hub_module.download_slot():
        held = [place.open("a") for place in (tmp_path / "cache/.locks").iterdir()]
        for place in held:
            with pytest.raises(BlockingIOError):
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
