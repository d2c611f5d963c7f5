"""Every artifact under some directories, read whole: its checksums, and whether the files of a run belong together."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from outlier_features.errors import DamagedFile, InputError
from outlier_features.files.artifacts import (
    PROVENANCE,
    SAME_RUN,
    Provenance,
    read_json,
    require_equal,
    require_page,
    require_sequences,
    unfinished,
)
from outlier_features.files.digest import sha256_of
from outlier_features.files.foreign_files import foreign_provenance
from outlier_features.files.model_source import SOURCE_FILE, evicted_files, source_of
from outlier_features.files.sealed_parquet import metadata_of, open_parquet
from outlier_features.files.tables import public_tables, schema_of
from outlier_features.files.tensorfile import TensorFile
from outlier_features.progress import byte_bar
from outlier_features.summary.summarize_run import facts_of

_CHUNK = re.compile(r"\d+-\d+")
_SUMMARY_FILE = "summary.json"
_RUN_FILE = "tokens.safetensors"  # every run has it, in its own directory
_FOREIGN = (".gguf", ".yaml")  # which a run has for quantizers, and others may have lie elsewhere
_FOR_QUANTIZERS = "quantization"


@dataclass(frozen=True)
class Verdict:
    """A file and, if it is not as it must be, what was found."""

    path: Path
    found: str | None


def verify_artifacts(directories: Iterable[Path]) -> Iterator[Verdict]:
    """A verdict on each artifact under `directories`, by its suffix; logs and exported copies are passed over.

    A model's files are checked against the record of their fetch. Files of a run whose provenance contradicts the
    others' are bad, though each be whole. Raises `InputError` where a directory is missing.
    """
    origins: dict[Path, dict[Path, Mapping[str, Any]]] = defaultdict(dict)
    for path in _files(directories):
        try:
            provenance = _CHECKS[path.suffix](path)
        except InputError as error:
            yield Verdict(path, str(error).removeprefix(f"{path}: "))
            continue
        run = next((place for place in path.parents if (place / _RUN_FILE).exists()), None)
        if provenance is None or run is None:
            yield Verdict(path, None)
        else:
            origins[run][path] = provenance
    for run, members in origins.items():
        chunks: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for path, found in members.items():
            if _CHUNK.fullmatch(path.stem):
                chunks[path.stem].append(found)
        jobs = {chunk: _usual(files, ("job",)) for chunk, files in chunks.items()}
        usual = _usual(members.values())
        for path, found in members.items():
            yield Verdict(path, _contradiction(run, path, found, usual, jobs.get(path.stem, {})))


def _files(directories: Iterable[Path]) -> Iterator[Path]:
    for directory in directories:
        if not directory.is_dir():
            raise InputError(
                f"{directory}: found no directory, expected one of a run's results or of fetched resources"
            )
        found = sorted(path for path in directory.rglob("*") if path.suffix in _CHECKS and path.is_file())
        recorded = {file for path in found if path.name == SOURCE_FILE for file in _recorded(path)}
        left = {one.path for one in unfinished(directory.rglob(".*"))}
        for path in found:
            exported = path.parent.name == "export" and (path.parent.parent / _RUN_FILE).exists()
            program = path.suffix == ".js" and path.parent.name == "page"  # other scripts are data
            others = path.suffix in _FOREIGN and path.parent.name != _FOR_QUANTIZERS
            if (
                not program
                and not others
                and path not in recorded
                and not exported
                and not left & {path, *path.parents}
            ):
                yield path


def _recorded(source: Path) -> set[Path]:
    """The files of a fetched model that its record beside them describes."""
    try:
        content = read_json(source)
        return {source.parent / content.get("location", "") / name for name in content.get("files", {})}
    except (InputError, AttributeError, TypeError):
        return set()  # the record's own check says what is wrong


def _check_tensors(path: Path) -> Provenance:
    file = TensorFile(path)
    provenance = file.provenance
    end = max((entry.offset + entry.nbytes for entry in file.entries.values()), default=None)
    if end is not None and end != file.size:
        raise DamagedFile(path, f"has {file.size} bytes, expected {end}")
    with byte_bar(path.name, file.size) as bar:
        damaged = file.damaged_tensors(bar.update)
    if damaged:
        raise DamagedFile(path, f"{', '.join(damaged)}: their bytes do not have the recorded checksums")
    return provenance


def _check_parquet(path: Path) -> Provenance:
    try:
        with open_parquet(path) as file:
            metadata = metadata_of(file)
            provenance = Provenance(path, metadata[PROVENANCE])
            for group in range(file.num_row_groups):
                file.read_row_group(group)
            schema = file.schema_arrow
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DamagedFile(path, f"expected a whole Parquet file with provenance, found {error}") from error
    name = metadata.get("table")
    tables = public_tables()
    if name in tables and not schema.equals(schema_of(tables[name])):
        raise DamagedFile(path, f"its columns are {schema.names} of types {schema.types}, not those of table {name!r}")
    if name not in (path.stem, path.parent.name, path.parent.parent.name):
        raise DamagedFile(path, f"is the table {name!r}")
    return provenance


def _check_json(path: Path) -> dict[str, Any] | None:
    content = read_json(path)
    if path.name == _SUMMARY_FILE:
        return facts_of(content)
    if "tokens_sha256" in content:
        return dict(content)
    if path.name == SOURCE_FILE and "location" in content:
        _check_model(path)
    return None


def _check_model(path: Path) -> None:
    source, gone = source_of(path, weights=False), evicted_files(path)
    for name, described in source["files"].items():
        if name in gone:
            continue
        file = Path(source["location"]) / name
        if (found := sha256_of(file)) != described["sha256"]:
            raise DamagedFile(path, f"{file} has the SHA-256 {found}, expected {described['sha256']}")


def _check_page(path: Path) -> None:
    require_page(path)


_CHECKS: dict[str, Callable[[Path], Mapping[str, Any] | None]] = {
    ".safetensors": _check_tensors,
    ".parquet": _check_parquet,
    ".json": _check_json,
    ".html": _check_page,
    ".js": _check_page,
    **dict.fromkeys(_FOREIGN, foreign_provenance),
}


def _contradiction(
    run: Path, path: Path, found: Mapping[str, Any], usual: Mapping[str, Any], job: Mapping[str, Any]
) -> str | None:
    """What in a file's provenance is not what its place or the run's other files say; `job` is that of its chunk."""
    place: dict[str, Any] = {"model": run.parent.name, "corpus": run.name}
    if "site" in found:
        place["site"] = path.parent.name
    try:
        require_sequences(found, path)
        require_equal(place, found, tuple(place), path)
        require_equal(usual, found, tuple(key for key in SAME_RUN if key in found), path)
        if "job" in found:
            require_equal(job, found, tuple(job), path)
    except DamagedFile as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _usual(files: Collection[Mapping[str, Any]], keys: tuple[str, ...] = SAME_RUN) -> dict[str, Any]:
    """For each key what most of the files say."""
    usual = {}
    for key in keys:
        said = Counter(json.dumps(one[key], sort_keys=True) for one in files if key in one)
        if said:
            usual[key] = json.loads(said.most_common(1)[0][0])
    return usual
