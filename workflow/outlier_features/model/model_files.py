"""Which files of a directory, repository or wheel make a model in transformers' format."""

import json
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Literal

from outlier_features.errors import InputError
from outlier_features.files.model_source import SOURCE_FILE

Format = Literal["safetensors", "bin"]
WEIGHTS = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
INDEX = {name: f"{weights}.index.json" for name, weights in WEIGHTS.items()}
SUFFIXES = {".jinja", ".json", ".model", ".tiktoken", ".txt"}
_OTHER_WEIGHTS = {".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pickle", ".pkl", ".pt", ".pth"}


def model_files(
    names: Iterable[str],
    read_text: Callable[[str], str],
    where: str,
    trust_remote_code: bool = False,
    weights: Format = "safetensors",
) -> list[str]:
    """Names of the files that transformers may read: weights, configurations, tokenizer.

    `names` are all that there are, as paths with `/`; `read_text` gives the text of one of them. Code is among those
    returned only with `trust_remote_code`, pickled weights only where `weights` is `bin`, to be converted. Raises
    `InputError`, which begins with `where`, if the configuration, the weights or a shard of them is missing.
    """
    names = set(names)
    require_inside(names, where)
    names = {name for name in names if not name.startswith(".")} - {SOURCE_FILE}
    if "config.json" not in names:
        gguf = sorted(name for name in names if name.endswith(".gguf"))
        hint = f", or `path` to name {_some(gguf)} itself" if gguf else ""
        raise InputError(f"{where} has no config.json, expected a model in transformers' format{hint}")
    chosen = {name for name in names if "/" not in name and PurePosixPath(name).suffix in SUFFIXES}
    chosen |= set(_weights(names, read_text, where, weights))
    if trust_remote_code:
        chosen |= {name for name in names if name.endswith(".py")}
    return sorted(chosen)


def require_inside(names: Iterable[str], where: str) -> None:
    """Raise `InputError` where a name, of a file in a repository or wheel, would lead out of its directory."""
    for name in names:
        path = PurePosixPath(name)
        if ".." in path.parts or path.is_absolute() or "\\" in name or not name.isprintable():
            raise InputError(f"{where} has a file {name!r}, expected none that leaves its directory")


def _weights(names: set[str], read_text: Callable[[str], str], where: str, kind: Format) -> list[str]:
    weights, index = WEIGHTS[kind], INDEX[kind]
    if weights in names:
        return [weights]
    if index not in names:
        raise InputError(f"{where} has no {weights} and no {index}, found {_instead(names, kind)}")
    try:
        shards = sorted(set(json.loads(read_text(index))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{where}: expected a weight_map in {index}, found {type(error).__name__}: {error}") from error
    suffix = PurePosixPath(weights).suffix
    if missing := [shard for shard in shards if shard not in names or not shard.endswith(suffix)]:
        raise InputError(f"{where} lacks {_some(missing)}, which {index} names; expected every {suffix} file of it")
    return shards


def _instead(names: set[str], kind: Format) -> str:
    """What weights there are, and what to do about it."""
    others = sorted(name for name in names if PurePosixPath(name).suffix in {".safetensors", *_OTHER_WEIGHTS})
    found = _some(others) or "no weights"
    if kind == "bin":
        return f"{found}: expected those, as the catalog entry says `weights: bin`"
    hint = (
        "; with `weights: bin` in its catalog entry, the tensors of the .bin files are read, and no more than tensors"
    )
    old = WEIGHTS["bin"] in names or INDEX["bin"] in names
    return (
        f"{found}: expected weights as safetensors, since others may run code when they are read{hint if old else ''}"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
