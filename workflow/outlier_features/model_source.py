"""`source.json`: where a fetched model lies and what it is."""

from pathlib import Path
from typing import Any

from outlier_features.artifacts import read_json
from outlier_features.errors import InputError

SOURCE_FILE = "source.json"


def source_of(source_json: Path) -> dict[str, Any]:
    """The record that `fetch_model` left, with `location` as the absolute path of the model's directory.

    Raises `InputError` where the record is damaged, or the model's files are gone or no longer of the recorded size.
    """
    source = read_json(source_json)
    try:
        location = (source_json.parent / source["location"]).resolve()  # absolute, or relative to the record
        sizes = {name: file["bytes"] for name, file in source["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{source_json}: expected the record of a fetched model, found {error!r}") from error
    if not location.is_dir():
        raise InputError(f"{source_json}: the model's directory {location} is gone, delete this file to fetch it again")
    for name, size in sizes.items():
        file = location / name
        found = f"{file.stat().st_size} bytes" if file.is_file() else "nothing"
        if found != f"{size} bytes":
            raise InputError(
                f"{source_json}: expected {size} bytes in {file}, found {found}; delete this file to fetch it again"
            )
    return {**source, "location": str(location)}
