"""`source.json`: what a fetch brought; of a model also where it lies."""

from pathlib import Path
from typing import Any

from outlier_features.errors import DamagedFile
from outlier_features.files.artifacts import read_json

SOURCE_FILE = "source.json"
_REMEDY = "delete this file to fetch it again"


def record_of(source_json: Path, *keys: str) -> dict[str, Any]:
    """The record of a fetch. Raises `InputError` where it is damaged or lacks one of `keys`."""
    try:
        return dict(read_json(source_json, *keys))
    except DamagedFile as error:
        raise DamagedFile(source_json, f"{error.found}; {_REMEDY}") from error


def source_of(source_json: Path) -> dict[str, Any]:
    """The record that `fetch_model` left, with `location` as the absolute path of the model's directory.

    Raises `InputError` where the record is damaged, or the model's files are gone or no longer of the recorded size.
    """
    source = record_of(source_json, "location", "files")
    location = (source_json.parent / source["location"]).resolve()  # absolute, or relative to the record
    sizes = {name: file["bytes"] for name, file in source["files"].items()}
    if not location.is_dir():
        raise DamagedFile(source_json, f"the model's directory {location} is gone, {_REMEDY}")
    for name, size in sizes.items():
        file = location / name
        found = f"{file.stat().st_size} bytes" if file.is_file() else "nothing"
        if found != f"{size} bytes":
            raise DamagedFile(source_json, f"expected {size} bytes in {file}, found {found}; {_REMEDY}")
    return {**source, "location": str(location)}
