"""Weights of a model from the hub, removed once a run has all its tables."""

import fcntl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlier_features.files.artifacts import write_json
from outlier_features.files.model_source import EVICTED_FILE, evicted_files, location_of, locked, record_of
from outlier_features.files.tensorfile import TensorFile
from outlier_features.stage_log import say


def evict_weights(source: Mapping[str, Any], model_source: Path, evicted: Path) -> None:
    """Remove the weights of a fetched model that are its own, and write `evicted`: what was freed, or why nothing was.

    source   its catalog entry, by which `restore_weights` fetches them again

    The record, the configuration and the tokenizer stay, and so do the shapes of the tensors, from which memory is
    planned. Weights in the hub library's cache are left, since they are everyone's, and so are those that a job of
    some run reads. Raises `InputError` where the record is damaged.
    """
    files, left = [], None
    if not location_of(model_source).is_relative_to(model_source.parent.resolve()):
        left = f"they lie in {location_of(model_source)}, which is shared"
    else:
        try:
            with locked(model_source, fcntl.LOCK_EX | fcntl.LOCK_NB):
                files = _remove(source, model_source)
        except BlockingIOError:
            left = "a job of another run reads them"
    freed = sum(file["bytes"] for file in files)
    write_json(evicted, {"freed_bytes": freed, "files": [file["name"] for file in files], "left": left})
    say(f"weights are left: {left}" if left else f"freed {freed:,} bytes in {model_source.parent}")


def _remove(source: Mapping[str, Any], model_source: Path) -> list[dict[str, Any]]:
    if evicted_files(model_source):
        return []
    record, location = record_of(model_source, "files", "revision"), location_of(model_source)
    found = {name: location / name for name in record["files"] if name.endswith(".safetensors")}
    noted = {name: {"tensors": _tensors(path)} for name, path in found.items()}
    # First the note, then the files: whoever finds the one does not look for the others.
    pinned = {**source, "revision": record["revision"]}
    write_json(model_source.with_name(EVICTED_FILE), {"source": pinned, "files": noted})
    removed = []
    for name, path in found.items():
        removed.append({"name": name, "bytes": 0 if path.is_symlink() else path.stat().st_size})
        path.unlink()
    return removed


def _tensors(path: Path) -> dict[str, Any]:
    return {name: [entry.dtype, [*entry.shape], entry.nbytes] for name, entry in TensorFile(path).entries.items()}
