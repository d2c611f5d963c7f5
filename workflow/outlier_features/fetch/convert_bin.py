"""Weights as PyTorch pickled them, as safetensors: torch's weights-only unpickler builds tensors and runs nothing."""

import json
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import save_file

from outlier_features.errors import InputError
from outlier_features.model.model_files import INDEX, WEIGHTS
from outlier_features.progress import item_bar

_SAVED = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
}  # fmt: skip


def convert_bin(folder: Path, files: Sequence[str], directory: Path) -> None:
    """Write the model `files` of `folder` into `directory`, with each .bin file as a safetensors file.

    Names, dtypes and values of the tensors stay as they are; tensors that share memory are written one by one. Raises
    `InputError` where a .bin file is damaged or holds anything but tensors by name.
    """
    shards = [name for name in files if name.endswith(".bin")]
    for name in files:
        if name not in shards and name not in INDEX.values():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, directory / name)
    places: dict[str, str] = {}
    for shard in item_bar(shards, "convert weights", "file"):
        tensors = read_tensors(folder / shard)
        target = WEIGHTS["safetensors"] if len(shards) == 1 else f"{PurePosixPath(shard).stem}.safetensors"
        save_file(tensors, directory / target, metadata={"format": "pt"})
        shutil.copymode(directory / "config.json", directory / target)  # else only its owner may read it
        places |= dict.fromkeys(tensors, target)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": places}
        (directory / INDEX["safetensors"]).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickled file by name, read by torch's weights-only unpickler. Raises `InputError`."""
    # Legacy files, of torch before 1.6, are one stream and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # a stream of bytes from anywhere can fail in any way
        raise _refused(path, _found(error)) from error
    if not isinstance(content, dict):
        raise _refused(path, f"a {type(content).__name__}")
    return {name: _plain(name, value, path) for name, value in content.items()}


def _refused(path: Path, found: str) -> InputError:
    return InputError(
        f"weights: {path.name} is refused, expected dense tensors by name and nothing else, found {found}"
    )


def _found(error: Exception) -> str:
    """What is wrong with the file; torch's own advice, to read it with less care, is not passed on."""
    text = str(error)
    if asked := re.search(r"GLOBAL (\S+)", text):
        return f"a pickle that asks for {asked[1]}"
    if unknown := re.search(r"WeightsUnpickler error: (.*)", text):
        return f"a pickle of other things ({unknown[1].strip()})"
    return f"none that torch can read ({type(error).__name__})"


def _plain(name: object, value: Any, path: Path) -> torch.Tensor:
    """The tensor with memory of its own. Raises `InputError` where it is none that safetensors can hold."""
    if not isinstance(name, str) or type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise _refused(path, f"{name!r}, which is a {type(value).__name__}")
    if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in _SAVED:
        kind = f"{value.layout} {value.dtype} on {value.device}".replace("torch.", "")
        raise _refused(path, f"{name!r}, which is {kind}")
    plain: torch.Tensor = value.detach().clone(memory_format=torch.contiguous_format)
    return plain
