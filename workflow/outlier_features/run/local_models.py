"""Models that lie on this machine: dumps, opened, and which of them are not there or cannot be read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlier_features.dump.dumps import Dump, dump_files
from outlier_features.errors import InputError
from outlier_features.files.layer_keys import LAYER


@dataclass(frozen=True)
class LocalModels:
    """The dumps by name, and of the models that cannot be had why not: their fetch will say so, and others go on."""

    dumps: dict[str, Dump]
    refused: dict[str, InputError]

    @classmethod
    def of(cls, models: Mapping[str, Mapping[str, Any]]) -> "LocalModels":
        """Of the selected entries of a catalog. Raises `InputError` where not one of them can be had."""
        dumps, refused = {}, {}
        for name, source in models.items():
            try:
                _require_files(name, source)
                if "dump" in source:
                    dumps[name] = Dump.open(source)
            except InputError as error:
                refused[name] = error
        if len(refused) == len(models):
            raise next(iter(refused.values()))
        return cls(dumps, refused)


def _require_files(name: str, source: Mapping[str, Any]) -> None:
    for file in dump_files(source) if "dump" in source else []:
        if not Path(file).is_file():
            what = "matches no file" if any(sign in file for sign in ("*", "?", LAYER)) else "is not a file"
            raise InputError(f"config: catalog.models.{name}.dump: {file} {what}")
    if "path" in source and not {"hub", "pypi"} & source.keys():
        path = Path(source["path"])
        if not path.is_dir() and not (path.suffix == ".gguf" and path.is_file()):
            raise InputError(f"config: catalog.models.{name}.path: {path} is not a directory and no .gguf file")
