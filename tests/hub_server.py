"""A hub on loopback: enough of the Hugging Face hub's HTTP interface for models and data sets, and its ways to fail."""

import hashlib
import http.server
import json
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LARGE = (".safetensors", ".bin", ".parquet", ".gz")  # what a real hub keeps apart, under its SHA-256


@dataclass
class Repository:
    """Commits (files by name) and what branches and tags stand for."""

    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    gated: int = 0  # the status with which files are refused; what they are called is public
    info_status: int = 0  # the status with which everything is refused
    cut: dict[str, int] = field(default_factory=dict)  # close the connection once after so many bytes of a file
    stall: dict[str, int] = field(default_factory=dict)  # stop sending a file after so many bytes, say nothing
    tree_is_mute: bool = False  # never answer what files there are
    pause: float = 0.0  # seconds between two pieces of a file, of 64 KiB

    def commit(self, files: dict[str, bytes], revision: str = "main") -> str:
        content = repr((self.name, revision, sorted(files.items()))).encode()
        sha = hashlib.sha1(content).hexdigest()
        self.commits[sha] = files
        self.revisions[revision] = sha
        return sha


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    status: int = 0  # with which it was put off
    at: float = 0.0


@dataclass
class PutOff:
    """The next so many requests for what matches are answered with a status: too many, or unable."""

    path: str
    status: int
    times: int
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    def __init__(self, url: str):
        self.url = url
        self.requests: list[Request] = []
        self.put_off: list[PutOff] = []
        self.limit: tuple[int, int] | None = None  # requests in a window, and its seconds; more are answered with 429
        self.sent = 0  # bytes of file content
        self.sending = self.most_at_once = 0  # files
        self.lock = threading.Lock()
        self.stalled = threading.Event()
        self._repositories: dict[tuple[str, str], Repository] = {}

    def model(self, name: str, files: dict[str, bytes]) -> Repository:
        return self._add("models", name, files)

    def dataset(self, name: str, files: dict[str, bytes]) -> Repository:
        return self._add("datasets", name, files)

    def repository(self, kind: str, name: str) -> Repository | None:
        return self._repositories.get((kind, name))

    def downloads(self, name: str) -> list[Request]:
        """GET requests for the content of the file `name`."""
        return [r for r in self.requests if r.method == "GET" and "/resolve/" in r.path and r.path.endswith("/" + name)]

    def forget(self) -> None:
        self.requests.clear()
        self.sent = self.most_at_once = 0

    def refusal(self, path: str) -> PutOff | None:
        """How the next request is put off, if it is."""
        with self.lock:
            for one in self.put_off:
                if one.times and re.search(one.path, path):
                    one.times -= 1
                    return one
            if self.limit:
                count, seconds = self.limit
                now = time.monotonic()
                window = now // seconds
                if sum(not r.status and r.at // seconds == window for r in self.requests) >= count:
                    left = int(seconds - now % seconds)
                    policy = f'"fixed window";"api";q={count};w={seconds}'
                    return PutOff("", 429, 0, {"RateLimit": f'"api";r=0;t={left}', "RateLimit-Policy": policy})
        return None

    def _add(self, kind: str, name: str, files: dict[str, bytes]) -> Repository:
        repository = self._repositories[kind, name] = Repository(name)
        repository.commit(files)
        return repository


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        # What waits in the kernel counts as sent: by itself that buffer grows to megabytes that nobody asked for.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        self.hub = Hub(f"http://127.0.0.1:{self.server_address[1]}")


@contextmanager
def running_hub() -> Iterator[Hub]:
    server = _Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        if path == "/api/agent-harnesses":  # the library asks once a day, of no repository
            return self._send_json({})
        put_off = self.hub.refusal(path)
        status = put_off.status if put_off else 0
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range"), status, time.monotonic()))
        if put_off:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._refuse(status, "", "come back later", more=put_off.headers)
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/(.+))?", path):
            self._api(*match.groups(), recursive="recursive=True" in url.query or "recursive=true" in url.query)
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve("datasets" if match[1] else "models", match[2], match[3], match[4])
        else:
            self._refuse(404, "", f"no route {path}")
        return None

    do_HEAD = do_POST = do_GET

    def _api(self, kind: str, name: str, what: str | None, rest: str | None, recursive: bool) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        repository = self.hub.repository(kind, name)
        if repository is None:
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if repository.info_status:
            return self._refuse(repository.info_status, "", "refused")
        revision, folder = _split_revision(repository, rest or "main")
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repository.commits[commit]
        if what == "tree":
            if repository.tree_is_mute:
                time.sleep(60)
            entries = _tree(files, folder, recursive)
            if folder and not entries:
                return self._refuse(404, "EntryNotFound", f"{folder} does not exist")
            return self._send_json(entries)
        if what == "paths-info":
            paths = urllib.parse.parse_qs(body.decode()).get("paths", []) or json.loads(body)["paths"]
            return self._send_json([_entry(path, files[path]) for path in paths if path in files])
        siblings = [{"rfilename": path} for path in sorted(files)]
        return self._send_json({"id": name, "sha": commit, "gated": False, "tags": [], "siblings": siblings})

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repository = self.hub.repository(kind, name)
        if repository is None:
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if repository.gated:
            return self._refuse(repository.gated, "GatedRepo", "Access to this repository is restricted")
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if path not in repository.commits[commit]:
            return self._refuse(404, "EntryNotFound", f"{path} does not exist", commit=commit)
        return self._send_file(repository, path, repository.commits[commit][path], commit)

    def _send_file(self, repository: Repository, path: str, content: bytes, commit: str) -> None:
        headers = {"ETag": f'"{_etag(path, content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(match[1]) if match else 0
        stop = min(int(match[2]) + 1, len(content)) if match and match[2] else len(content)
        if match and start >= len(content):
            return self._send(416, b"", headers)
        if match:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._begin(206 if match else 200, {**headers, "Content-Length": str(stop - start)})
        if self.command == "HEAD":
            return None
        with self.hub.lock:
            self.hub.sending += 1
            self.hub.most_at_once = max(self.hub.most_at_once, self.hub.sending)
        try:
            return self._send_content(repository, path, content, start, stop)
        finally:
            with self.hub.lock:
                self.hub.sending -= 1

    def _send_content(self, repository: Repository, path: str, content: bytes, start: int, stop: int) -> None:
        if path in repository.stall:
            self._write(content[start : start + repository.stall[path]])
            self.hub.stalled.set()
            time.sleep(60)
        if path in repository.cut:
            self._write(content[start : start + repository.cut.pop(path)])
            self.close_connection = True
            return
        for position in range(start, stop, 1 << 16):
            time.sleep(repository.pause)
            self._write(content[position : min(position + (1 << 16), stop)])

    def _write(self, content: bytes) -> None:
        try:
            self.wfile.write(content)
            self.wfile.flush()
            self.hub.sent += len(content)
        except OSError:  # the client has enough
            self.close_connection = True

    def _send_json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(
        self, status: int, code: str, message: str, commit: str = "", more: dict[str, str] | None = None
    ) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json", **(more or {})}
        headers |= {"X-Error-Code": code} if code else {}
        headers |= {"X-Repo-Commit": commit} if commit else {}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._begin(status, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()


def _split_revision(repository: Repository, rest: str) -> tuple[str, str]:
    """`rest` is a revision and perhaps a path; a revision may have slashes, as refs/convert/parquet has."""
    for revision in sorted(repository.revisions, key=len, reverse=True):
        if rest == revision or rest.startswith(revision + "/"):
            return revision, rest[len(revision) + 1 :]
    revision, _, folder = rest.partition("/")
    return revision, folder


def _etag(path: str, content: bytes) -> str:
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, object]]:
    prefix = folder.rstrip("/") + "/" if folder else ""
    below = {path: content for path, content in files.items() if path.startswith(prefix)}
    folders: set[str] = set()
    for path in below:
        parents = path[len(prefix) :].split("/")[:-1]
        depths = range(1, len(parents) + 1) if recursive else range(1, min(len(parents), 1) + 1)
        folders |= {prefix + "/".join(parents[:depth]) for depth in depths}
    entries: list[dict[str, object]] = [
        {"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders
    ]
    entries += [_entry(path, content) for path, content in below.items() if recursive or "/" not in path[len(prefix) :]]
    return sorted(entries, key=lambda entry: str(entry["path"]))
