"""Documents of a data set on the hub, read where it lies: by ranges and streams, not by whole files."""

import gzip
import io
import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub import HfFileSystem

from outlier_features.errors import InputError
from outlier_features.fetch.card import card_header, licence_of
from outlier_features.fetch.documents import read_jsonl, read_parquet
from outlier_features.fetch.hub import ANSWER_SECONDS, Repo, Unreachable, resolve, talking_to_hub, within

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz")  # .json with an object a line, as many have it
_CONVERTED = "refs/convert/parquet"


@dataclass(frozen=True)
class HubDocuments:
    """Data files of a split; `repo.revision` is the commit that has them, `files` are paths in it."""

    repo: Repo
    files: list[str]
    config: str
    split: str
    licence: str | None


def find_documents(repo: Repo, config: str, split: str) -> HubDocuments:
    """Find the data files of (config, split) of the data set `repo`.

    They are those that its card names, else those with customary names, else those that the hub itself made of the
    data set (branch refs/convert/parquet, which has only the newest revision). Raises `InputError`, which says what the
    data set has, where there is none.
    """
    commit, name = resolve(repo)
    pinned = replace(repo, name=name, revision=commit)
    with talking_to_hub(pinned):
        tree = _Tree(pinned)
        header = card_header(within(ANSWER_SECONDS, lambda: tree.text("README.md")))
        configs = _configs(header)
        chosen = _choose(configs, config)
        entry = configs.get(chosen, {})
        files = tree.matching(_patterns(entry, split)) if _splits(entry) else _customary(tree, entry, chosen, split)
    licence = licence_of(header).name
    if files:
        return HubDocuments(pinned, files, chosen, split, licence)
    converted = _find_converted(pinned, chosen, split) if repo.revision == "main" else None
    if converted:
        return replace(converted, licence=licence)
    raise InputError(_nothing_found(repo, config, split, configs, tree))


def read_documents(found: HubDocuments, column: str) -> Generator[str]:
    """The texts of `column`, file after file. Raises `InputError`."""
    with talking_to_hub(found.repo):
        system = HfFileSystem()
        for name in found.files:
            path = _path(found.repo, name)
            where = f"hub: {name} of data set {found.repo.name!r}"
            if name.endswith(".parquet"):
                with system.open(path, "rb", cache_type="none") as file:
                    yield from read_parquet(file, column, where)
            else:
                with system.open(path, "rb", block_size=0) as file:
                    lines = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
                    yield from read_jsonl(io.BufferedReader(lines, 1 << 16), column, where)


class _Tree:
    """The files of a revision, as paths in it; only those whose format can be read."""

    def __init__(self, repo: Repo):
        self._system = HfFileSystem()
        self._root = _path(repo, "")

    def text(self, name: str) -> str:
        try:
            return bytes(self._system.cat_file(self._root + name)).decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def matching(self, patterns: list[str]) -> list[str]:
        found = [path for pattern in patterns for path in sorted(self._system.glob(self._root + pattern))]
        return self._readable(dict.fromkeys(found))

    def inside(self, folder: str) -> list[str]:
        """The files in `folder`, which may be missing."""
        try:
            return self._readable(sorted(map(str, self._system.ls(self._root + folder, detail=False))))
        except FileNotFoundError:
            return []

    def names(self) -> list[str]:
        """All names, readable or not, of the two topmost levels."""
        return [path.removeprefix(self._root) for path in self._system.find(self._root.rstrip("/"), maxdepth=2)]

    def _readable(self, paths: Iterable[str]) -> list[str]:
        return [path.removeprefix(self._root) for path in paths if path.endswith(SUFFIXES)]


def _path(repo: Repo, name: str) -> str:
    return f"datasets/{repo.name}@{repo.revision}/{name}"


def _configs(header: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The configurations in a card's header, by name."""
    entries = header.get("configs")
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return {str(entry.get("config_name", "default")): entry for entry in entries}


def _choose(configs: dict[str, dict[str, Any]], config: str) -> str:
    """`default` also stands for the configuration that the card marks as such, or for its only one."""
    if config in configs or config != "default":
        return config
    marked = [name for name, entry in configs.items() if entry.get("default")]
    return (marked or (list(configs) if len(configs) == 1 else [config]))[0]


def _splits(entry: dict[str, Any]) -> dict[str, list[str]]:
    """Patterns by split; patterns that name no split are of `train`."""
    files = entry.get("data_files")
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()] if "path" not in files else [files]
    splits: dict[str, list[str]] = {}
    for item in files if isinstance(files, list) else [files]:
        split, paths = (item.get("split", "train"), item.get("path")) if isinstance(item, dict) else ("train", item)
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str):
                splits.setdefault(str(split), []).append(path)
    return splits


def _patterns(entry: dict[str, Any], split: str) -> list[str]:
    folder = _folder(entry.get("data_dir") or "")
    return [folder + pattern.removeprefix("./") for pattern in _splits(entry).get(split, [])]


def _customary(tree: _Tree, entry: dict[str, Any], config: str, split: str) -> list[str]:
    """The files with the split's name in the configuration's folder, for `default` also in data/ or on top."""
    folders = [_folder(entry.get("data_dir") or config), *(["data/", ""] if config == "default" else [])]
    split_name = re.compile(rf"{re.escape(split)}([-.]|_\d|$)")
    for folder in folders:
        named = [path for path in tree.inside(folder) if split_name.match(_stem(path.removeprefix(folder)))]
        files = named or tree.inside(f"{folder}{split}/")
        for suffix in SUFFIXES:
            if alike := [path for path in files if path.endswith(suffix)]:
                return alike
    return []


def _folder(path: str) -> str:
    path = str(path).strip("./")
    return f"{path}/" if path else ""


def _stem(name: str) -> str:
    suffixes = [suffix for suffix in SUFFIXES if name.endswith(suffix)]
    return name.removesuffix(max(suffixes, key=len))


def _find_converted(repo: Repo, config: str, split: str) -> HubDocuments | None:
    try:
        commit, _ = resolve(replace(repo, revision=_CONVERTED))
    except Unreachable:
        raise
    except InputError:
        return None  # there is no such branch
    pinned = replace(repo, revision=commit)
    with talking_to_hub(pinned):
        tree = _Tree(pinned)
        files = tree.inside(f"{config}/{split}/") or tree.inside(f"{config}/partial-{split}/")
    return HubDocuments(pinned, files, config, split, None) if files else None


def _nothing_found(repo: Repo, config: str, split: str, configs: dict[str, dict[str, Any]], tree: _Tree) -> str:
    text = f"hub: data set {repo.name!r} at revision {repo.revision!r} has no files of config {config!r} and split "
    text += f"{split!r} that can be read ({', '.join(SUFFIXES)})"
    if configs:
        described = [f"{name!r} ({', '.join(_splits(entry)) or 'no splits named'})" for name, entry in configs.items()]
        return f"{text}; its card names the configs (and splits) {', '.join(described[:20])}"
    with talking_to_hub(repo):
        names = tree.names()
    return f"{text}; it has {', '.join(names[:20]) or 'no files'}"
