"""`source.json`: what a fetch brought; of a model also where it lies, and whether its weights were evicted since."""

import fcntl
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from outlier_features.errors import DamagedFile
from outlier_features.files.artifacts import read_json

SOURCE_FILE = "source.json"
EVICTED_FILE = "evicted.json"  # beside it, while the weights are gone
_held: list[TextIO] = []  # locks, until this process ends
_REMEDY = "delete this file to fetch it again"


def record_of(source_json: Path, *keys: str) -> dict[str, Any]:
    """The record of a fetch. Raises `InputError` where it is damaged or lacks one of `keys`."""
    try:
        return dict(read_json(source_json, *keys))
    except DamagedFile as error:
        raise DamagedFile(source_json, f"{error.found}; {_REMEDY}") from error


def location_of(source_json: Path) -> Path:
    """The absolute path of the model's directory. Raises `InputError` where the record is damaged."""
    source = record_of(source_json, "location", "files")
    return (source_json.parent / source["location"]).resolve()  # absolute, or relative to the record


def source_of(source_json: Path, weights: bool = True) -> dict[str, Any]:
    """The record that `fetch_model` left, with `location` as the absolute path of the model's directory.

    weights   whether they are needed: those that were evicted are fetched again, and none are until this process ends

    Raises `InputError` where the record is damaged, or the model's files are gone or no longer of the recorded size.
    """
    location = location_of(source_json)
    source = record_of(source_json, "location", "files")
    if weights and location.is_relative_to(source_json.parent.resolve()) and source.get("kind") == "hub":
        _hold(source_json)
    gone = evicted_files(source_json)
    sizes = {name: file["bytes"] for name, file in source["files"].items() if name not in gone}
    if not location.is_dir():
        raise DamagedFile(source_json, f"the model's directory {location} is gone, {_REMEDY}")
    for name, size in sizes.items():
        file = location / name
        found = f"{file.stat().st_size} bytes" if file.is_file() else "nothing"
        if found != f"{size} bytes":
            raise DamagedFile(source_json, f"expected {size} bytes in {file}, found {found}; {_REMEDY}")
    return {**source, "location": str(location)}


def evicted_files(source_json: Path) -> dict[str, Any]:
    """The files of a model that `evict_weights` removed, by name, with what it noted of each."""
    path = source_json.parent / EVICTED_FILE
    return dict(read_json(path, "files")["files"]) if path.is_file() else {}


def locked(source_json: Path, operation: int) -> TextIO:
    """The lock over a model's weights, taken; `LOCK_SH` to read them, `LOCK_EX` to remove them or fetch them again.

    Raises `OSError`: `BlockingIOError` where another has it and `operation` has `LOCK_NB`.
    """
    file = (source_json.parent / f".{SOURCE_FILE}.lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(file, operation)
    except OSError:
        file.close()
        raise
    return file


def _hold(source_json: Path) -> None:
    """Have a model's weights there, and keep others from evicting them until this process ends."""
    while True:
        with suppress(OSError):  # a directory that is only read, or a file system without locks
            _held.append(locked(source_json, fcntl.LOCK_SH))
        if not (source_json.parent / EVICTED_FILE).is_file():
            return
        while _held:
            _held.pop().close()
        _fetch_again(source_json)


def _fetch_again(source_json: Path) -> None:
    """In a process of its own: what fetches is no part of what a job computes, nor of the code's version."""
    command = [sys.executable, "-m", "outlier_features.fetch.restore_weights", str(source_json)]
    environment = dict(os.environ)
    if "OUTLIER_FEATURES_OFFLINE" in environment:  # a job that runs a model has switched the hub off for itself
        environment["HF_HUB_OFFLINE"] = environment.pop("OUTLIER_FEATURES_OFFLINE")
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        reason = done.stdout.strip() or f"exit status {done.returncode}"
        raise DamagedFile(source_json, f"its weights were evicted and could not be fetched again: {reason}")
